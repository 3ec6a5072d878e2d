import numba.core.caching
import pytest

from kernels.compiled import compiled


@pytest.mark.parametrize("folders", [True, False])
def test_functions_are_compiled_with_and_without_a_folder_for_them(monkeypatch, folders):
    if not folders:
        monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])

    @compiled(nogil=True)
    def twice(number):
        return 2 * number

    assert twice(21) == 42
    assert twice.signatures
