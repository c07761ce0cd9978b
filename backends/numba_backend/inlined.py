"""How the parts of kernels are compiled: typed and lowered, to be inlined, and never made into machine code of their own.

Numba optimizes and assembles every function that a kernel calls, with all that it calls in turn, before it does so once more
within the kernel. Of all that only the last is used.
"""

from __future__ import annotations

from typing import Any

from numba import njit
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import PassManager
from numba.core.typed_passes import InlineOverloads, NopythonRewrites
from numba.core.untyped_passes import InlineClosureLikes, InlineInlinables, LiteralUnroll, WithLifting

# Passes that find nothing here: no closure, no `with`, no expression of arrays, no overload to be inlined in Numba's own terms
_IDLE = (WithLifting, InlineClosureLikes, InlineInlinables, LiteralUnroll, InlineOverloads, NopythonRewrites)


class _Part(JITCodeLibrary):
    """Code that is linked into its callers as it is."""

    @property
    def codegen(self) -> Any:
        return self

    def set_env(self, name: str, env: Any) -> None:
        """Python objects that machine code of its own would refer to."""

    def get_pointer_to_function(self, name: str) -> int:
        return 0

    def finalize(self) -> None:
        self._raise_if_finalized()
        for library in dict.fromkeys(self._linking_libraries):
            self._reload_init.update(library._reload_init)
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalize_dynamic_globals()
        self._finalized = True


class _Compiler(CompilerBase):
    def define_pipelines(self) -> list[PassManager]:
        self.state.library = _Part(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        fewer = PassManager("normkit")
        for kind, why in passes.passes:
            if kind not in _IDLE:
                fewer.add_pass(kind, why)
        fewer.finalize()
        return [fewer]


inline = njit(
    forceinline=True, error_model="numpy", _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=_Compiler
)
