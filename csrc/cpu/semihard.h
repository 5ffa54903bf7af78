// Semi-hard pairs, chosen inside the pass: the positives p and negatives n of an anchor with d_p < d_n <= d_p + margin, d the
// Euclidean distance. A positive counts if it has such a negative, a negative if it has such a positive. The negatives of an anchor
// lie in a few spans of distance, as those of neighbouring positives overlap.
#pragma once
#include "cpu/tiles.h"

DML_BEGIN

// Roots as IEEE 754 has them: distances then keep the order of similarities, and equal those of PyTorch.
DML_FN VecF root(VecF x) {
#if defined(__AVX512F__)
  return (VecF)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX__)
  return (VecF)_mm256_sqrt_ps((__m256)x);
#else
  for (int q = 0; q < Native<float>::lanes; ++q) x[q] = __builtin_sqrtf(x[q]);
  return x;
#endif
}
DML_FN VecD root(VecD x) {
  for (int q = 0; q < Native<double>::lanes; ++q) x[q] = __builtin_sqrt(x[q]);
  return x;
}
template <class V> DML_FN V exact_distance(V s) {  // what counts as one point has the distance 0, as in `distance`
  using T = typename Scalar<V>::type;
  const V square = T(2) - T(2) * s, least = splat<V>(4 * Limit<T>::epsilon);
  return select(square > least, root(max(square, least)), splat<V>(0));
}

// The distances of all positives; none has a negative yet.
template <class T> static void list_distances(const Problem<T>& p, Scratch<T>& s, int thread) {
  using V = typename Native<T>::V;
  constexpr int64_t lanes = Native<T>::lanes;
  for (int64_t n = 0; n < p.block_count; ++n) {
    const Block& b = p.blocks[n];
    if (b.owner % p.threads != thread) continue;
    const T* cells = block_similarities(p, b, s, true);
    for (int64_t i = b.a0; i < b.a1; ++i) {
      const Positives<T> positives = positives_of(p, b, cells, i, s.list);
      for (int c = 0; c < p.semihard_count; ++c) {
        const Semihard& chosen = p.semihard[c];
        const int64_t first = chosen.starts[i], count = positives.count;
        T* near = static_cast<T*>(chosen.near) + first;
        for (int64_t k = 0; k < count; k += lanes) {
          V x = V{};
          const int64_t some = least(lanes, count - k);
          for (int64_t q = 0; q < some; ++q) x[q] = positives[k + q];
          x = exact_distance(x);
          for (int64_t q = 0; q < some; ++q) near[k + q] = x[q];
        }
        for (int64_t k = 0; k < count; ++k) chosen.which[first + k] = int32_t(k);
        memset(chosen.kept + first, 0, count);
        chosen.left[i] = int32_t(count), chosen.spans[i] = 0;
      }
    }
  }
}

// Finds negatives for the positives of an anchor that have none yet. Most find one among the first.
template <class T> static void find_negatives(const Semihard& chosen, int64_t i, const T* s, int64_t columns) {
  using V = typename Native<T>::V;
  const T margin = T(chosen.margin);
  T* near = static_cast<T*>(chosen.near) + chosen.starts[i];
  int32_t* which = chosen.which + chosen.starts[i];
  unsigned char* kept = chosen.kept + chosen.starts[i];
  int32_t left = chosen.left[i];
  T lowest = 0, highest = 0;
  auto bound = [&] {
    lowest = highest = left ? near[0] : T(0);
    for (int32_t k = 1; k < left; ++k) lowest = min(lowest, near[k]), highest = max(highest, near[k]);
    highest += margin;
  };
  bound();
  for (int64_t j = 0; left && j < columns; j += Native<T>::lanes) {
    V x;
    memcpy(&x, s + j, sizeof x);
    x = exact_distance(x);
    if (!any((x > lowest) & (x <= highest))) continue;
    const int32_t before = left;
    for (int32_t k = 0; k < left;) {
      if (!any((x > near[k]) & (x <= near[k] + margin))) {
        ++k;
        continue;
      }
      --left;
      kept[which[k]] = 1;
      const T distance = near[k];
      const int32_t place = which[k];
      near[k] = near[left], which[k] = which[left];
      near[left] = distance, which[left] = place;
    }
    if (left < before) bound();
  }
  chosen.left[i] = left;
}

// The spans that the negatives lie in, from the positives that count. `spare` has room for them.
template <class T> static void join_spans(const Semihard& chosen, int64_t i, T* spare) {
  const T margin = T(chosen.margin);
  const int64_t count = chosen.starts[i + 1] - chosen.starts[i], left = chosen.left[i];
  T* near = static_cast<T*>(chosen.near) + chosen.starts[i] + left;
  T* spans = static_cast<T*>(chosen.spans_at) + i * 2 * chosen.most_spans;
  sort_numbers(near, count - left, spare);
  int32_t n = 0;
  for (int64_t k = 0; k < count - left; ++k) {
    if ((n > 0 && near[k] <= spans[2 * n - 1]) || n == chosen.most_spans) {
      spans[2 * n - 1] = near[k] + margin;
    } else {
      spans[2 * n] = near[k], spans[2 * n + 1] = near[k] + margin;
      ++n;
    }
  }
  chosen.spans[i] = n;
}

// Before anything else is done with the anchors of a chunk. Tiles that are kept are multiplied here.
template <class T> static void choose_semihard(const Problem<T>& p, Scratch<T>& s, int thread) {
  if (p.semihard_count == 0) return;
  list_distances(p, s, thread);
  wait_for_all(p.threads);
  for (int64_t k = 0; k < p.tile_count; ++k) {
    const Tile& t = p.tiles[k];
    if (!owns(p, k, t, thread, true)) continue;
    const T* cells = tile_similarities(p, t, s);
    const int64_t ld = distance_of_rows(p, t);
    for (int64_t r = 0; r < t.i1 - t.i0; ++r)
      for (int c = 0; c < p.semihard_count; ++c) find_negatives(p.semihard[c], t.i0 + r, cells + r * ld, rounded(t.j1 - t.j0));
  }
  wait_for_all(p.threads);
  const int64_t rows = p.row1 - p.row0, to = p.row0 + rows * (thread + 1) / p.threads;
  for (int64_t i = p.row0 + rows * thread / p.threads; i < to; ++i)
    for (int c = 0; c < p.semihard_count; ++c) join_spans(p.semihard[c], i, s.list);
  wait_for_all(p.threads);
}

// Negatives of the strip that do not count become no pair, in a copy. Returns whether any is left.
template <class T> static bool mask_semihard(const Semihard& chosen, const Strip<T>& strip, T* to) {
  using V = typename Native<T>::V;
  decltype(V{} > V{}) found = {};
  for (int64_t r = 0; r < strip.rows; ++r) {
    const int64_t i = strip.row + r, count = chosen.spans[i];
    const T* spans = static_cast<const T*>(chosen.spans_at) + i * 2 * chosen.most_spans;
    for (int64_t j = 0; j < strip.columns; j += Native<T>::lanes) {
      V x;
      memcpy(&x, strip.s + r * strip.ld + j, sizeof x);
      const V distance = exact_distance(x);
      decltype(x > x) inside = {};
      for (int64_t k = 0; k < count; ++k) inside |= (distance > spans[2 * k]) & (distance <= spans[2 * k + 1]);
      found |= inside;
      x = select(inside, x, splat<V>(T(no_pair())));
      memcpy(to + r * strip.ld + j, &x, sizeof x);
    }
  }
  return any(found);
}

// Shows the strip as one loss sees it, where it counts any pair of it.
template <class T, class Visit> static void see(const Problem<T>& p, const FunctorState& loss, const Strip<T>& strip,
                                                Scratch<T>& s, Visit visit) {
  if (loss.semihard) {
    if (!mask_semihard(p.semihard[loss.semihard - 1], strip, s.masked)) return;
    Strip<T> mine = strip;
    mine.s = s.masked;
    visit(mine);
  } else if (sees_any(p, loss, strip)) {
    visit(seen(p, loss, strip, s));
  }
}

DML_END
