"""What an acceptance builds and hosts on the GPUs that there are."""

from collections.abc import Sequence

from trt_mtp.build.variant import EngineVariant


def in_order_of_use(draft_lengths: Sequence[int], num_gpus: int) -> list[int]:
    """Draft lengths, those first that are hosted where there are few GPUs.

    One variant alone should be the deepest; two should be compared with no speculation.

    >>> in_order_of_use((0, 1, 3), 1), in_order_of_use((0, 1, 3), 2)
    ([3, 0, 1], [0, 3, 1])
    """
    lengths = sorted(draft_lengths)
    deepest = lengths[-1]
    first = [deepest] if num_gpus == 1 else [lengths[0], deepest]
    return [*first, *(length for length in lengths if length not in first)]


def device_of(length: int, draft_lengths: Sequence[int], num_gpus: int) -> int:
    """The GPU of a variant: hosted ones have one each.

    >>> [device_of(length, (0, 1, 3), 2) for length in (0, 1, 3)]
    [0, 0, 1]
    """
    return in_order_of_use(draft_lengths, num_gpus).index(length) % num_gpus


def hosted(
    variants: Sequence[EngineVariant], num_gpus: int, is_planned: bool
) -> tuple[EngineVariant, ...]:
    """The variants to host together, by draft length.

    Two of TensorRT-LLM on one GPU would each take most of the memory that the other left, so there
    are as many as GPUs. Variants that somebody else built (`is_planned` is false) are all hosted.
    """
    if not num_gpus or not is_planned:
        return tuple(variants)
    order = in_order_of_use([variant.draft_length for variant in variants], num_gpus)[:num_gpus]
    return tuple(variant for variant in variants if variant.draft_length in order)
