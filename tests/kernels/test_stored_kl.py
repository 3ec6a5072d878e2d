"""KL from what a store keeps against numbers of its formula, and the twins against each other."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from kernels.dispatch import only
from kernels.stored_kl import Coefficients, Kept, Levels, expected, likeliest, stored_kl

B, N, Z, C = 2, 11, 3, 5
M = B * N * Z
KINDS = ("values", "levels", "coefficients")


def made(kind: str, seed: int = 0, share: float = 0.6, planes: tuple[int, int] = (6, 2), count: int = C):
    """A teacher of some of the voxels, which they are, and its logits by definition, float64 (V, C)."""
    random = torch.Generator().manual_seed(seed)
    index_V = (torch.rand(M, generator=random) < share).nonzero().squeeze(1)
    if kind == "values":
        teacher_VC = 4 * torch.randn(len(index_V), count, generator=random)
        return teacher_VC, index_V, teacher_VC.double()
    if kind == "levels":  # layer by layer, as stores keep them; a table for each frame
        codes_BNZC = torch.randint(0, 9, (B, Z, N, count), dtype=torch.uint8, generator=random).transpose(1, 2)
        table_BL = -9 * torch.rand(B, 9, generator=random)
        frame_V = index_V // (N * Z)
        rows_VC = codes_BNZC.reshape(M, count)[index_V].long()
        return Levels(codes_BNZC, table_BL, index_V), index_V, table_BL[frame_V[:, None], rows_VC].double()
    low_BkN = torch.randint(-128, 128, (B, planes[0], N), dtype=torch.int8, generator=random)
    high_BhN = torch.randint(-60, 60, (B, planes[1], N), dtype=torch.int8, generator=random)
    vectors_BkZC = torch.randn(B, planes[0], Z, count, generator=random) / 4000
    mean_BZC = torch.randn(B, Z, count, generator=random)
    coefs_BkN = low_BkN.double()
    coefs_BkN[:, : planes[1]] += 256 * high_BhN.double()
    columns_BNZC = torch.einsum("bkn,bkzc->bnzc", coefs_BkN, vectors_BkZC.double()) + mean_BZC.double()[:, None]
    logits_VC = columns_BNZC.reshape(M, count)[index_V]
    return Coefficients(low_BkN, high_BhN, vectors_BkZC, mean_BZC, index_V, lambda: logits_VC), index_V, logits_VC


def student_logits(dtype: torch.dtype = torch.float64, count: int = C) -> torch.Tensor:
    return (3 * torch.randn(M, count, generator=torch.Generator().manual_seed(9))).to(dtype).requires_grad_()


def everything(twin: str, student_MC: torch.Tensor, teacher: Kept, temperature: float, row_V: torch.Tensor | None):
    """The KL of each row, and the gradient of a sum in which rows have weights of their own."""
    with only(twin):
        kl_V = stored_kl(student_MC, teacher, temperature, row_V)
        return kl_V, torch.autograd.grad((torch.linspace(0.2, 2, len(kl_V)) * kl_V).sum(), student_MC)[0]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_formula(kind, temperature):
    """T^2 sum_k p_t (ln p_t - ln p_s), and T (p_s - p_t) by hand, in the rows that are compared and no others."""
    student_MC, (teacher, row_V, teacher_VC) = student_logits(), made(kind)
    kl_V, grad_MC = everything("reference", student_MC, teacher, temperature, row_V)
    p_VC, q_VC = (teacher_VC / temperature).softmax(-1), (student_MC[row_V] / temperature).softmax(-1)
    torch.testing.assert_close(kl_V, temperature**2 * (p_VC * (p_VC / q_VC).log()).sum(-1), rtol=1e-9, atol=1e-12)
    expected_MC = torch.zeros_like(student_MC)
    expected_MC[row_V] = torch.linspace(0.2, 2, len(row_V)).double()[:, None] * temperature * (q_VC - p_VC)
    torch.testing.assert_close(grad_MC, expected_MC.detach(), rtol=1e-9, atol=1e-12)


def test_a_student_that_says_the_same_has_nothing_to_learn():
    teacher, row_V, teacher_VC = made("levels")
    student_MC = torch.zeros(M, C, dtype=torch.float64).index_copy_(0, row_V, teacher_VC + 3).requires_grad_()
    kl_V, grad_MC = everything("reference", student_MC, teacher, 2.0, row_V)
    torch.testing.assert_close(kl_V, torch.zeros_like(kl_V), rtol=0, atol=1e-12)
    torch.testing.assert_close(grad_MC, torch.zeros_like(grad_MC), rtol=0, atol=1e-12)


def test_classes_and_means_follow_from_the_distributions():
    teacher, _, teacher_VC = made("coefficients")
    assert torch.equal(likeliest(teacher), teacher_VC.argmax(-1))
    values_CW = torch.rand(C, 2, dtype=torch.float64)
    torch.testing.assert_close(expected(teacher, values_CW), teacher_VC.softmax(-1) @ values_CW)
    tied = torch.tensor([[1.0, 4, 4], [0, 0, 0]])
    assert likeliest(tied).tolist() == [1, 0]


TWINS = """
import torch
from test_stored_kl import C, KINDS, M, everything, expected, likeliest, made, only, student_logits

def compare(dtype, tolerance, kind, temperature, listed=True, **made_of):
    count = made_of.get("count", C)
    student_MC, (teacher, row_V, _) = student_logits(dtype, count), made(kind, **made_of)
    row_V = row_V if listed else None
    found, right = (everything(twin, student_MC, teacher, temperature, row_V) for twin in ("triton", "reference"))
    assert [part.dtype for part in found] == [part.dtype for part in right]
    for part, other in zip(found, right, strict=True):
        torch.testing.assert_close(part, other, rtol=tolerance, atol=tolerance)
    values_CW, both = torch.rand(count, 3), []
    for twin in ("triton", "reference"):
        with only(twin):
            both.append((likeliest(teacher), expected(teacher, values_CW)))
    assert torch.equal(both[0][0], both[1][0])
    torch.testing.assert_close(both[0][1], both[1][1], rtol=1e-5, atol=1e-6)

for kind in KINDS:
    exact = 1e-12 if kind != "coefficients" else 2e-5  # which are float32 there, and float64 in the definition
    for temperature in (1.0, 2.0, 4.0):
        compare(torch.float64, exact, kind, temperature)
    compare(torch.float32, 2e-5, kind, 2.0, seed=1, count=18)
    compare(torch.bfloat16, 1e-2, kind, 2.0, seed=2)
    compare(torch.float64, exact, kind, 2.0, listed=False, share=1.1)
    compare(torch.float64, exact, kind, 2.0, share=0.0)  # nothing is taught
    compare(torch.float64, exact, kind, 2.0, seed=3, share=1 / M)  # one voxel, or two
    compare(torch.float32, 2e-5, kind, 2.0, count=1)
for planes in ((0, 0), (1, 0), (3, 3)):
    compare(torch.float64, 2e-5, "coefficients", 2.0, planes=planes)
"""

# by every encoding, one frame of three without a teacher
STORED = """
import numpy as np
import torch
from distill.frame import stack
from distill.signals.coarse import LevelBev, LevelVoxels
from distill.signals.columns import CoveredVoxels
from distill.signals.voxels import Voxels
from kernels.dispatch import only
from kernels.stored_kl import Coefficients, Levels, stored_kl
from test_columns import EVERYWHERE, GRID, NAMES, SIGNAL, Rows, head

said = head(2)
signals = (SIGNAL, Coefficients), (LevelVoxels(GRID, NAMES), Levels), (Voxels(GRID, NAMES), Levels)
for signal, kept in (*signals, (LevelBev(GRID, NAMES), Levels)):
    question = next(iter(signal.answers & {"voxels"} or signal.answers))
    of = {"voxels": said, "columns": said.log_probs_XYZC[:, :, 0]}[question]
    of = said.log_probs_XYZC if isinstance(signal, Voxels) else of
    record = signal.decode(Rows(signal, signal.encode(of)))
    heard = signal.listen(stack([record, signal.absent(), record]), None, GRID, 17, frozenset())
    rows = 3 * (320 if question == "voxels" else 80)
    index = torch.arange(rows)[torch.rand(rows) < 0.1]
    in_place, student = getattr(heard, f"kept_{question}")(index), torch.randn(rows, 18)
    assert isinstance(in_place, kept)
    with only("triton"):
        found = stored_kl(student, in_place, 2.0, index)
    with only("reference"):
        right = stored_kl(student.double(), getattr(heard, question)(index), 2.0, index)
    torch.testing.assert_close(found.double(), right, rtol=2e-4, atol=2e-4)
"""


def test_triton_twin_in_the_interpreter_matches_torch(interpret):
    of_columns = Path(__file__).parents[1] / "distill" / "signals"
    interpret(f"{TWINS}\nimport sys; sys.path.insert(0, {str(of_columns)!r})\n{STORED}")


COMPILED = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class NoDevice:
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0

driver.set_active(NoDevice())
from kernels.stored_kl import triton as twin
from test_stored_kl import C, KINDS, M, made

numbers, rows = torch.zeros(M), torch.arange(M)
for kind in KINDS:
    read, parts = twin._read(made(kind, share=1.1, count=18)[0])
    student = torch.zeros(M, 18, dtype=torch.bfloat16)
    launches = [(twin._gradient, (student, rows, numbers, numbers, student))]
    if kind == "coefficients":
        launches += [(twin._kl, (student, rows, numbers, numbers, numbers)), (twin._likeliest, (rows,))]
        launches += [(twin._expected, (numbers, numbers, 2))]
    for kernel, more in launches:
        built = kernel.warmup(parts, *more, M, 18, read, 32, 32, grid=(1,)).asm
        assert len(built["cubin"]) > 0 and "tf32" not in built["ptx"]
print("ran to its end")
"""


def test_triton_kernels_compile_for_a_gpu_without_one():
    """To machine code of an H100, which no interpreter shows."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path}\n{COMPILED}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "ran to its end\n", done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_gpu_matches_cpu_and_repeats_itself(kind):
    student_MC, (teacher, row_V, _) = student_logits(torch.float32, 18), made(kind, share=0.9, count=18)
    right = everything("reference", student_MC, teacher, 2.0, row_V)
    if isinstance(teacher, torch.Tensor):
        on_gpu = teacher.cuda()
    else:
        parts = {each.name: getattr(teacher, each.name) for each in fields(teacher)}
        on_gpu = replace(teacher, **{name: part.cuda() for name, part in parts.items() if name != "decode"})
    run = partial(everything, "triton", student_MC.detach().cuda().requires_grad_(), on_gpu, 2.0, row_V.cuda())
    for first, second, cpu in zip(run(), run(), right, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first.cpu(), cpu, rtol=2e-5, atol=2e-5)
