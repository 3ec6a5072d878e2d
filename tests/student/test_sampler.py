import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import InputError
from student.sampler import MixedSampler, ResumableSampler


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
    together = [sorted(draw for part in step for draw in part) for step in shared]
    assert together == [sorted(step) for step in alone]
    seen = [draw.frame for step in alone for draw in step]
    assert len(seen) == len(set(seen)) == count // batch * batch


def test_epochs_differ_and_seeds_differ():
    def order(seed, epoch):
        sampler = ResumableSampler(20, 4, seed, 0, 1)
        sampler.start_at(epoch, 0)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert {draw.turn for batch in order(0, 1) for draw in batch} == {1}


def epochs(sampler, first_epoch, last_epoch):
    found = []
    for epoch in range(first_epoch, last_epoch):
        sampler.start_at(epoch, 0)
        found += list(sampler)
    return found


@settings(deadline=None)
@given(
    labelled=st.lists(st.booleans(), min_size=4, max_size=24).filter(lambda given: any(given) and not all(given)),
    batch_size=st.integers(2, 4),
    share=st.floats(0.3, 0.7),
)
def test_a_mixed_batch_holds_its_share_of_labelled_frames_and_each_kind_is_gone_through_evenly(
    labelled, batch_size, share
):
    batches = epochs(MixedSampler(labelled, share, batch_size, 0, 0, 1), 0, 5)
    assert len(batches) == 5 * (len(labelled) // batch_size)
    drawn = [draw for batch in batches for draw in batch]
    for batch in batches:
        assert sum(labelled[draw.frame] for draw in batch) == int(share * batch_size + 0.5)
    assert len(set(drawn)) == len(drawn)  # whoever comes again is augmented anew
    for kind in (True, False):
        times = [sum(draw.frame == index for draw in drawn) for index, given in enumerate(labelled) if given == kind]
        assert max(times) - min(times) <= 1


@settings(deadline=None)
@given(epoch=st.integers(0, 3), step=st.integers(0, 5), ranks=st.sampled_from([1, 2, 4]))
def test_a_mixed_order_may_be_entered_anywhere_and_shared_by_ranks(epoch, step, ranks):
    labelled = [True, False, False, True, True, False] * 4
    whole = MixedSampler(labelled, 0.5, 4, 7, 0, 1)
    whole.start_at(epoch, 0)
    expected = list(whole)[step:]
    parts = [MixedSampler(labelled, 0.5, 4, 7, rank, ranks) for rank in range(ranks)]
    for part in parts:
        part.start_at(epoch, step)
    found = [sorted(draw for part in batch for draw in part) for batch in zip(*parts, strict=True)]
    assert found == [sorted(batch) for batch in expected]


@pytest.mark.parametrize(
    ("labelled", "share", "told"),
    [
        (
            [True] * 4,
            0.5,
            "labelled_share=0.5 puts 2 labelled keyframes into a batch of 4, but no training keyframe is",
        ),
        ([False] * 4, 0.5, "but no training keyframe has labels: set trainer.labelled_share=null"),
        ([True, False], 0.1, "labelled_share=0.1 puts 0 labelled keyframes into a batch of 4: set another share"),
        ([True, False], 0.9, "labelled_share=0.9 puts 4 labelled keyframes into a batch of 4: set another share"),
    ],
)
def test_a_share_that_cannot_be_had_is_refused(labelled, share, told):
    with pytest.raises(InputError, match=told):
        MixedSampler(labelled, share, 4, 0, 0, 1)


def test_a_share_of_one_needs_no_others():
    assert all(
        draw.frame < 2
        for batch in epochs(MixedSampler([True, True, False, False], 1.0, 2, 0, 0, 1), 0, 3)
        for draw in batch
    )
