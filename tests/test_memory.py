"""Cross-batch memory: against a list that is kept by hand, with every loss and miner; its state; what others get wrong."""

from __future__ import annotations

import copy
import io
from collections import deque

import pytest
import torch
from cases import CLASSES, PAIRS, WIDTH, Case, embeddings_of

import dmlcore
from dmlcore import CrossBatchMemory
from dmlcore.errors import ConfigError
from dmlcore.losses import Miner, create
from dmlcore.losses.streaming import stream_budget

MINERS = [
    "batch_hard",
    "easy_positive",
    "multi_similarity",
    "pair_margin(pos_margin=0.5, neg_margin=1.3)",
    "semihard",
    "angular",
    "distance_weighted",
]


def stream(steps: int = 6, size: int = 12, seed: int = 0):
    """Batches whose embeddings drift, as those of a model in training do."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        labels = torch.randint(CLASSES, (size,), generator=generator)
        yield embeddings_of(labels, seed=seed + 17 * step), labels


def by_hand(size: int):
    """Entries oldest first, as two deques; a call gives the references, their labels, and where the newest batch is."""
    entries, entry_labels = deque(maxlen=size), deque(maxlen=size)

    def put(x: torch.Tensor, y: torch.Tensor):
        entries.extend(x.detach().clone())
        entry_labels.extend(y.clone())
        own = torch.arange(len(entries) - len(x), len(entries))
        return torch.stack(tuple(entries)), torch.stack(tuple(entry_labels)), own

    return put


def value_and_gradient(compute, x: torch.Tensor, *arguments, **keywords) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = x.clone().requires_grad_()
    value = compute(leaf, *arguments, **keywords)
    gradient = torch.autograd.grad(value, leaf)[0] if value.requires_grad else torch.zeros_like(x)
    return value.detach(), gradient


def check_against_hand(memory: CrossBatchMemory, definition, size: int) -> None:
    put = by_hand(size)
    for x, y in stream():
        entries, labels, own = put(x, y)
        result = value_and_gradient(memory, x, y)
        expected = value_and_gradient(definition, x, y, references=entries, reference_labels=labels, own=own)
        for a, b in zip(result, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    assert memory.filled == min(size, 72) and memory.pointer == 72 % size


@pytest.mark.parametrize("case", PAIRS, ids=lambda case: case.id)
@pytest.mark.parametrize("size", [31, 48, 100])
def test_every_loss_against_a_list_kept_by_hand(case: Case, size: int) -> None:
    memory = CrossBatchMemory(case.create(), size, WIDTH, dtype=torch.float64)
    check_against_hand(memory, case.create().reference, size)


@pytest.mark.parametrize("text", MINERS)
@pytest.mark.parametrize("name", ["contrastive", "triplet", "ms", "circle", "sup_con"])
def test_every_miner_against_a_list_kept_by_hand(text: str, name: str) -> None:
    """Other libraries take a miner's indices into the batch for indices into the memory."""
    loss, same = create(name, miner=text), create(name, miner=text)
    memory = CrossBatchMemory(loss, 31, WIDTH, dtype=torch.float64)
    if text == "distance_weighted":  # which negative is drawn depends on the order of the entries, which the ring turns
        memory = CrossBatchMemory(loss, 100, WIDTH, dtype=torch.float64)
        check_against_hand(memory, lambda *a, **k: same(*a, **k), 100)
    else:
        check_against_hand(memory, same.reference, 31)


def test_pairs_are_of_the_right_labels_and_never_of_an_entry_with_itself() -> None:
    seen = []

    class Spy(Miner):
        """All pairs, remembered."""

        name = "spy"

        def masks(self, similarities, positive, negative, compared):
            seen.append((positive.clone(), negative.clone(), similarities.clone()))
            return positive, negative

    memory = CrossBatchMemory(create("contrastive", miner=Spy()), 31, WIDTH, dtype=torch.float64)
    for x, y in stream():
        start = memory.pointer
        memory(x, y)
        positive, negative, similarities = seen.pop()
        labels, own = memory.labels[: memory.filled], (torch.arange(12) + start) % 31
        for i in range(12):
            for j in range(memory.filled):
                assert positive[i, j] == (y[i] == labels[j] and j != own[i])
                assert negative[i, j] == (y[i] != labels[j])
            assert similarities[i, own[i]] == pytest.approx(1, abs=1e-12)
            assert torch.equal(memory.queue[own[i]], x[i])


@pytest.mark.parametrize(
    "name, options, peer",
    [
        ("contrastive", {}, "ContrastiveLoss"),
        ("ms", {"epsilon": "none"}, "MultiSimilarityLoss"),
        ("circle", {}, "CircleLoss"),
        ("sup_con", {}, "SupConLoss"),
        ("triplet", {}, "TripletMarginLoss"),
    ],
)
def test_equals_pytorch_metric_learning(name: str, options: dict, peer: str) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses", reason="the test extra is not installed")
    theirs = losses.CrossBatchMemory(getattr(losses, peer)(), WIDTH, memory_size=31)
    memory = CrossBatchMemory(create(name, **options), 31, WIDTH, dtype=torch.float64)
    for x, y in stream():
        for a, b in zip(value_and_gradient(memory, x, y), value_and_gradient(theirs, x, y), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_an_ensemble_with_miners_and_proxies() -> None:
    proxy = create("norm_softmax", num_classes=CLASSES, embedding_dim=WIDTH).double()
    members = [create("ms"), create("contrastive", miner="batch_hard"), proxy, create("triplet", mining="hard")]
    ensemble = dmlcore.LossEnsemble(members, "uncertainty").double()
    memory = CrossBatchMemory(ensemble, 31, WIDTH, dtype=torch.float64)
    put = by_hand(31)
    for x, y in stream():
        entries, labels, own = put(x, y)
        apart = torch.stack(
            [
                m.reference(x, y) if m is proxy else m.reference(x, y, references=entries, reference_labels=labels, own=own)
                for m in members
            ]
        )
        torch.testing.assert_close(memory(x, y), ensemble.weighting(apart))
    assert set(ensemble.terms) == {"ms", "contrastive", "norm_softmax", "triplet"}
    assert dict(memory.named_parameters())  # those of the ensemble


def test_warm_up_compares_the_batch_with_itself() -> None:
    loss = create("ms")
    memory = CrossBatchMemory(loss, 31, WIDTH, warmup=3, dtype=torch.float64)
    put = by_hand(31)
    for step, (x, y) in enumerate(stream()):
        entries, labels, own = put(x, y)
        alone = loss.reference(x, y)
        expected = alone if step < 3 else loss.reference(x, y, references=entries, reference_labels=labels, own=own)
        torch.testing.assert_close(memory(x, y), expected)
        assert memory.filled == min(31, 12 * (step + 1))  # it fills meanwhile


def test_evaluation_leaves_the_memory_alone() -> None:
    batches = list(stream())
    loss = create("ms")
    memory = CrossBatchMemory(loss, 31, WIDTH, warmup=1, dtype=torch.float64).eval()
    x, y = batches[0]
    torch.testing.assert_close(memory(x, y), loss.reference(x, y))  # nothing there: the batch itself
    memory.train()
    memory(*batches[1])
    memory.eval()
    torch.testing.assert_close(memory(x, y), loss.reference(x, y))  # still warming up
    memory.train()
    memory(*batches[2])
    memory.eval()
    before = copy.deepcopy(memory.state_dict())
    entries, labels = memory.queue[:24].clone(), memory.labels[:24].clone()
    torch.testing.assert_close(memory(x, y), loss.reference(x, y, references=entries, reference_labels=labels))
    assert all(torch.equal(before[key], value) for key, value in memory.state_dict().items())


def labels_of(kind: str, y: torch.Tensor):
    if kind == "classes":
        return y, {}
    if kind == "matrix":
        return torch.nn.functional.one_hot(y, CLASSES) + torch.nn.functional.one_hot((y + 1) // 2, CLASSES) > 0, {}
    return torch.stack([y.double(), y.double() / 2], 1), {"relation": lambda a, b: torch.cdist(a, b) < 1.5}


@pytest.mark.parametrize("kind", ["classes", "matrix", "function"])
def test_relations(kind: str) -> None:
    loss = create("contrastive")
    memory = CrossBatchMemory(loss, 31, WIDTH, dtype=torch.float64)
    put = by_hand(31)
    for x, y in stream():
        y, keywords = labels_of(kind, y)
        entries, labels, own = put(x, y)
        result = value_and_gradient(memory, x, y, **keywords)
        expected = value_and_gradient(loss.reference, x, y, references=entries, reference_labels=labels, own=own, **keywords)
        for a, b in zip(result, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    assert memory.labels.dtype == {"classes": torch.int64, "matrix": torch.bool, "function": torch.float64}[kind]


@pytest.mark.parametrize("kind", ["classes", "matrix", "function"])
@pytest.mark.parametrize("steps", [1, 4], ids=["part filled", "filled"])
def test_state_is_restored_exactly(kind: str, steps: int) -> None:
    def create_memory(dtype: torch.dtype = torch.float64) -> CrossBatchMemory:
        ensemble = dmlcore.LossEnsemble([create("ms"), create("contrastive", miner="distance_weighted")], "uncertainty")
        return CrossBatchMemory(ensemble, 31, WIDTH, warmup=2, dtype=dtype)

    batches = list(stream())
    memory = create_memory()
    for x, y in batches[:steps]:
        y, keywords = labels_of(kind, y)
        memory(x, y, **keywords)
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert {"queue", "labels", "pointer", "filled", "calls"} <= set(state)
    assert (state["pointer"], state["filled"], state["calls"]) == (12 * steps % 31, min(31, 12 * steps), steps)
    other = create_memory()
    other.load_state_dict(state)
    for x, y in batches[steps:]:
        y, keywords = labels_of(kind, y)
        assert torch.equal(memory(x, y, **keywords), other(x, y, **keywords))
    # across number types: the entries of a float32 memory, exactly, in one of float64, and after a move
    small, wide = create_memory(torch.float32), create_memory()
    for x, y in batches[:steps]:
        y, keywords = labels_of(kind, y)
        small(x.float(), y, **keywords)
    wide.load_state_dict(small.state_dict())
    assert wide.queue.dtype == torch.float64 and torch.equal(wide.queue.float(), small.queue)
    moved = small.double()
    x, y = batches[steps]
    y, keywords = labels_of(kind, y)
    assert torch.equal(moved(x, y, **keywords), wide(x, y, **keywords))
    # the memory alone, as a run keeps it beside its ensemble
    alone = create_memory()
    alone.load_memory_state(memory.memory_state())
    assert torch.equal(alone.queue, memory.queue) and alone.pointer == memory.pointer and alone.calls == memory.calls


def test_a_state_of_another_memory_is_refused() -> None:
    state = CrossBatchMemory(create("ms"), 31, WIDTH).state_dict()
    with pytest.raises(RuntimeError, match=r"stored memory is \[31, 11\], but this one is \[32, 11\]"):
        CrossBatchMemory(create("ms"), 32, WIDTH).load_state_dict(state)
    del state["pointer"]
    with pytest.raises(RuntimeError, match="Missing key.*pointer"):
        CrossBatchMemory(create("ms"), 31, WIDTH).load_state_dict(state)


def test_reset_forgets_everything() -> None:
    memory = CrossBatchMemory(create("ms"), 31, WIDTH, dtype=torch.float64)
    batches = list(stream())
    first = memory(*batches[0])
    memory(*batches[1])
    memory.reset()
    assert (memory.pointer, memory.filled, memory.calls) == (0, 0, 0)
    assert torch.equal(memory(*batches[0]), first)
    memory.reset()
    matrix, _ = labels_of("matrix", batches[0][1])
    memory(batches[0][0], matrix)  # and may hold labels of another kind then


def test_entries_are_copies_without_gradient() -> None:
    memory = CrossBatchMemory(create("ms"), 31, WIDTH)
    x = embeddings_of(torch.arange(12) % 3, dtype=torch.bfloat16).requires_grad_()
    value = memory(x, torch.arange(12) % 3)
    value.backward()
    assert not memory.queue.requires_grad and x.grad is not None and x.grad.dtype == torch.bfloat16
    before = memory.queue.clone()
    with torch.no_grad():
        x.zero_()
    assert torch.equal(memory.queue, before)


def test_a_call_before_backward_is_noticed() -> None:
    batches = list(stream())
    for name, miner in (("ms", None), ("contrastive", "angular")):  # streamed, and in plain PyTorch
        memory = CrossBatchMemory(create(name, miner=miner), 20, WIDTH, dtype=torch.float64)
        memory(*batches[0])
        leaf = batches[1][0].clone().requires_grad_()
        with stream_budget(4000):
            value = memory(leaf, batches[1][1])
            torch.autograd.grad(value, leaf, retain_graph=True)
            memory(*batches[2])
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                torch.autograd.grad(value, leaf)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("rows", [slice(3, 5), slice(None)], ids=["some", "all"])
@pytest.mark.parametrize("before", [0, 1, 4], ids=["empty", "filling", "full"])
def test_what_is_not_finite_is_never_stored(before: int, rows: slice, bad: float) -> None:
    memory, expected = (CrossBatchMemory(create("ms"), 31, WIDTH, dtype=torch.float64) for _ in range(2))
    batches = list(stream(8))
    for x, y in batches[:before]:
        memory(x, y)
        expected(x, y)
    x, y = batches[before]
    spoilt = x.clone()
    spoilt[rows, 2] = bad
    held, held_labels = memory.queue.clone(), memory.labels.clone()
    assert not torch.isfinite(memory(spoilt, y))
    assert torch.isfinite(memory.queue).all()
    finite = torch.isfinite(spoilt).all(1)
    if before == 4:  # the places of what is not finite keep their entries
        places = (torch.arange(len(x)) + 48) % 31
        held[places[finite]], held_labels[places[finite]] = x[finite], y[finite]
    else:
        if finite.any():
            expected(x[finite], y[finite])
        held, held_labels = expected.queue, expected.labels
        assert (memory.filled, memory.pointer) == (expected.filled, expected.pointer)
    assert torch.equal(memory.queue, held) and torch.equal(memory.labels, held_labels)
    assert torch.isfinite(memory(*batches[before + 1]))


def test_entries_move_with_the_module_and_are_no_buffers() -> None:
    memory = CrossBatchMemory(create("ms"), 24, WIDTH)
    memory(*next(stream()))
    assert not list(memory.buffers()) and {"queue", "labels", "pointer", "filled", "calls"} <= set(memory.state_dict())
    memory.double()
    assert memory.queue.dtype == torch.float64 and memory.labels.dtype == torch.int64
    assert torch.equal(copy.deepcopy(memory).queue, memory.queue)
    assert memory.to("meta").queue.device.type == memory.labels.device.type == "meta"


def train_with_own_memory(rank: int, folder: str) -> None:
    """One of two processes: two steps of a memory whose loss has parameters, in `DistributedDataParallel`."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    ensemble = dmlcore.LossEnsemble(["ms", "proxy_anchor"], num_classes=CLASSES, embedding_dim=WIDTH)
    memory = dmlcore.distributed(CrossBatchMemory(ensemble, 30, WIDTH), "local")
    parallel = torch.nn.parallel.DistributedDataParallel(memory)
    for x, y in stream(2, seed=rank):
        parallel(x.float().requires_grad_(), y).backward()
    torch.save(memory.memory_state(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_a_local_memory_is_of_one_process(tmp_path) -> None:
    torch.multiprocessing.spawn(train_with_own_memory, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt")
        batches = list(stream(2, seed=rank))
        assert torch.equal(state["queue"][:24], torch.cat([x for x, _ in batches]).float())
        assert torch.equal(state["labels"][:24], torch.cat([y for _, y in batches]))


def test_mistakes() -> None:
    x, y = next(stream())
    with pytest.raises(ConfigError, match="a memory has nothing to add"):
        CrossBatchMemory(create("proxy_anchor", num_classes=3, embedding_dim=WIDTH), 10, WIDTH)
    with pytest.raises(ConfigError, match="wraps a dmlcore loss or LossEnsemble, got Linear"):
        CrossBatchMemory(torch.nn.Linear(2, 2), 10, WIDTH)
    for size, width, warmup, words in ((0, 4, 0, "size is 0"), (4, 0, 0, "embedding_dim is 0"), (4, 4, -1, "warmup is -1")):
        with pytest.raises(ConfigError, match=words):
            CrossBatchMemory(create("ms"), size, width, warmup=warmup)
    memory = CrossBatchMemory(create("ms"), 10, WIDTH)
    with pytest.raises(ConfigError, match="a batch of 12 does not fit a memory of 10"):
        memory(x, y)
    memory = CrossBatchMemory(create("ms"), 20, WIDTH)
    with pytest.raises(ConfigError, match=r"holds embeddings \[B, 11\], got \[12, 4\]"):
        memory(x[:, :4], y)
    with pytest.raises(ConfigError, match="a row for each of 12 embeddings"):
        memory(x, y[:5])
    with pytest.raises(ConfigError, match="a row for each of 12 embeddings"):
        memory(x, y[0])
    with pytest.raises(ConfigError, match="labels must be a tensor, got list"):
        memory(x, y.tolist())
    memory(x, y)
    with pytest.raises(ConfigError, match="give the same kind in every call"):
        memory(x, labels_of("matrix", y)[0])
    assert memory.filled == 12  # a refused batch leaves nothing behind
