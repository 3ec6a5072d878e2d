from hypothesis import given, settings
from hypothesis import strategies as st

from student.sampler import ResumableSampler


@settings(deadline=None)
@given(
    ranks=st.integers(1, 4), per_rank=st.integers(1, 3), count=st.integers(12, 40), seed=st.integers(0, 5), at=st.data()
)
def test_resuming_at_any_step_gives_the_rest_of_the_epoch(ranks, per_rank, count, seed, at):
    sampler = ResumableSampler(count, ranks * per_rank, seed, rank=0, world_size=ranks)
    sampler.start_at(3, 0)
    whole = list(sampler)
    step = at.draw(st.integers(0, sampler.steps_per_epoch))
    sampler.start_at(3, step)
    assert list(sampler) == whole[step:]
    assert len(sampler) == len(whole) - step


@settings(deadline=None)
@given(ranks=st.integers(1, 4), per_rank=st.integers(1, 3), count=st.integers(12, 40))
def test_ranks_share_the_frames_of_a_single_process(ranks, per_rank, count):
    batch = ranks * per_rank
    alone = list(ResumableSampler(count, batch, 0, rank=0, world_size=1))
    shared = zip(*(ResumableSampler(count, batch, 0, rank, ranks) for rank in range(ranks)), strict=True)
    together = [sorted(index for part in step for index in part) for step in shared]
    assert together == [sorted(step) for step in alone]
    seen = [index for step in alone for index in step]
    assert len(seen) == len(set(seen)) == count // batch * batch


def test_epochs_differ_and_seeds_differ():
    def order(seed, epoch):
        sampler = ResumableSampler(20, 4, seed, 0, 1)
        sampler.start_at(epoch, 0)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
