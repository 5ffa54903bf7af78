// The contract of a fused loss: an anchor sees its positives as a list and its negatives as a stream.
//
// A loss is a struct template over the number type T, whose members are its options, in the order its header lists them.
//   kValues               values per anchor; each comes with a count, and the default reduction is sum(values) / sum(counts)
//   Limits<V>             what a negative is compared with, known before the stream (may be empty)
//   Sums<V>               what the stream accumulates (may be empty)
//   Slopes<V>             what the derivative of one similarity needs, known after the stream
//   open(p) -> Limits     from the positives' similarities
//   nothing() -> Sums     the accumulators before the first negative
//   collect(s, limits, sums)           one negative similarity, or a register of them; called for every pair
//   merge(from, into)                  two partial accumulations into one; must be associative and commutative up to rounding
//   close(p, limits, sums, values, counts)
//   weigh(p, limits, sums, cotangents) -> Slopes     the cotangents of the values are folded in here, once per anchor
//   slope_positive(s, slopes), slope_negative(s, slopes)   cotangent * d value / d s
// V is T on CUDA and in scalar code, a vector register of T in the CPU's inner loops; collect and slope_negative are templates
// over V without branches. A pair that must not count (the anchor itself, a positive, padding) arrives as s = no_pair():
// exponentials of it vanish and distances of it are huge; a loss for which that is not enough tests is_pair(s).
//
// A loss that compares every positive with every negative declares kSlots = true and keeps one slot per positive:
//   SlotLimits<V>, SlotSums<V>         as above, per anchor and positive
//   open_slot(s_positive) -> SlotLimits; absent_slot() -> one that no negative touches, nothing_slot(), merge_slot() as above
//   measure(s)                         what is compared, computed once per negative (a distance, say)
//   collect(m, slot_limits, sums, slot_sums)         instead of collect above, once per positive
//   close(p, limits, sums, slot_sums, values, counts), weigh(p, limits, sums, slot_sums, cotangents)
//   slope_positive(s, slopes, slot_sums)
//   tally(m, slot_limits) -> V         summed over the positives, then finish(s, m, tally, slopes) -> cotangent * d value / d s
//
// Optional members:
//   kGiven = K            numbers per anchor that the caller hands in (a margin per class, a norm): open(p, given), given a pointer to K
//   kPartners = true      the loss couples an anchor with its positives as anchors (a batch against itself only):
//                         close(p, limits, sums, partner, values, counts), partner(k) -> Sums of positive k;
//                         weigh(p, limits, sums, partner, cotangents, partner_cotangents), the last (k)[v] of positive k;
//                         slope_positive(s, slopes, partner(k)): what couples the pair is in its value's slope too
//   kReweighs = true      the weights of tally are known only after the stream:
//                         reweigh_slot(slot_limits, slot_sums, slopes, s) -> SlotLimits, what tally gets instead of open_slot(s)
//   kOnce = true          once(m, sums), called for every negative before its P comparisons
//   kSlopesTogether = true  positives of an anchor depend on each other: close may keep what it found by slots.put(k, slot_sums), and
//                         slopes_positive(p, limits, sums, slopes, slots, to) adds all of them to to[k], instead of slope_positive
//   kSearch = 1 or 2      a slot asks only which m lie in an interval, how many they are and what they add up to, as any hinge with
//                         a threshold per positive does. Comparing costs P operations per negative; in large classes the sorted
//                         ends of all intervals are searched instead, O(log P). 1: all m below a limit, 2: two finite ends.
//                         interval(slot_limits) -> Interval, from <= m < to; measure(no_pair()) lies beyond every interval;
//                         gather(slot_limits, number, total, sums, slot_sums) instead of collect, number and sum of the m inside;
//                         tally is 1 inside the interval, 0 outside
//   kSteps = true         a slot asks how many m lie above it, softly: the sum of sigmoid((m - at) / width()), among the negatives and
//                         among the positives, and for their derivatives. In large classes the CPU takes these sums from power
//                         series (cpu/series.h) at a cost that hardly depends on P, and calls, with the fields `at` and the
//                         weight of tally first in SlotLimits, and measure(s) = s:
//                         has_own(limits) -> whether there is one more point, at 1, that has no slot
//                         settle(above, slope, rank, rank_slope) -> SlotSums, settle_own(above, rank, sums): the sums over
//                         negatives and, with 1 for itself, over positives; the slopes are sums of sigmoid's derivative
//                         close_settled instead of close, weigh_settled(p, limits, sums, cotangents) instead of weigh
//                         rank_weight(slot_sums), rank_weight_own(sums) -> weights of the sum `among` over the other positives in
//                         slope_settled(slot_sums, among, slopes), instead of slope_positive
//                         own_weight(slopes) -> weight of the point at 1 in tally, finish_settled(tally, slopes) instead of finish
//   kTable = true         two soft histograms of the whole batch, of positive and of negative pairs (kValues = 0, nothing per anchor):
//                         cells() -> their size; place(s) -> position of a similarity in [0, cells - 1], which adds to the cell
//                         below and above it in proportion; place_slope(s) -> d place / d s. collect, open, close, ... are not called
//   kCentres = true       every class of references has the same number of them, `centres` (the first option, at most 64),
//                         and takes part through one similarity: fold(s, count) -> Fold<V>, given the registers s[0..count) of
//                         neighbouring classes; its member `similarity` is what collect and slope_negative get, and
//                         share(s, fold) is d similarity / d s. The positives stay a list, of the anchor's class's centres.
//   kMeans = true         the numbers given are the mean similarities of all positive and of all negative pairs, the same for every
//                         anchor (kGiven = 2). The driver computes them itself, for a batch against itself by label. The last two
//                         members of Slopes are cotangent * d value / d each mean, whose gradient the driver adds. kCpuOnly too.
//   kCpuOnly = true       not in the CUDA table
//
// The second template argument is false for the narrow form of a loss (one fixed shift of all exponents, so that rows and
// columns share each exponential) and true for the wide one (running maxima); fits() says whether the options allow the form.
// A header of csrc/losses named x.h ends with `struct x_functors`, whose list() names its functors; nothing else registers them.
#pragma once
#include "dml/vector.h"

DML_BEGIN

DML_FN constexpr float no_pair() { return -1e18f; }  // far below any dot product of vectors that are not scaled
template <class V> DML_FN auto is_pair(V s) { return s > splat<V>(-1e17f); }

// The similarities of an anchor to its positives. Scalar code: positives are few.
template <class T> struct Positives {
  const T* s;
  long long count;
  DML_FN T operator[](long long k) const { return s[k]; }
  DML_FN T lowest() const {
    T m = Limit<T>::lowest * T(-1);
    for (long long k = 0; k < count; ++k) m = min(m, s[k]);
    return m;
  }
  DML_FN T highest() const {
    T m = Limit<T>::lowest;
    for (long long k = 0; k < count; ++k) m = max(m, s[k]);
    return m;
  }
};

// log(sum_k exp(exponent(s_k))) over the positives, max-shifted; `floor` is a further exponent that always takes part
// (0 for log(1 + sum), Limit<T>::lowest for none).
template <class T, class Exponent> DML_FN T log_sum(Positives<T> p, T floor, Exponent exponent) {
  T m = floor;
  for (long long k = 0; k < p.count; ++k) m = max(m, exponent(p[k]));
  T sum = exp(floor - m);
  for (long long k = 0; k < p.count; ++k) sum += exp(exponent(p[k]) - m);
  return m + log(sum);
}

// A running log(sum(exp(x))) over the stream of negatives.
template <class V, bool Wide> struct LogSum {  // narrow: one shift for every anchor
  V sum;
};
template <class V> struct LogSum<V, true> {  // wide: a running maximum of its own
  V sum, highest;
};
template <class T> DML_FN void log_sum_start(LogSum<T, false>& r) { r.sum = T(0); }
template <class T> DML_FN void log_sum_start(LogSum<T, true>& r) {
  r.sum = T(0);
  r.highest = Limit<T>::lowest;
}
template <class V> DML_FN void log_sum_add(V x, typename Scalar<V>::type shift, decltype(V{} > V{}) keep, LogSum<V, false>& r) {
  r.sum += select(keep, exp(x - shift), splat<V>(0));
}
template <class V> DML_FN void log_sum_add(V x, typename Scalar<V>::type, decltype(V{} > V{}) keep, LogSum<V, true>& r) {
#if DML_VECTORS
  const V above = x - r.highest, e = exp(min(above, -above));  // one of the two exponents is the maximum: one exponential
  const auto grows = above > splat<V>(0);
  r.sum = select(keep, select(grows, r.sum * e + splat<V>(1), r.sum + e), r.sum);
  r.highest = select(keep & grows, x, r.highest);
#else  // two exponentials need fewer registers of a GPU thread
  const V m = select(keep, max(x, r.highest), r.highest);
  r.sum = r.sum * exp(r.highest - m) + select(keep, exp(x - m), splat<V>(0));
  r.highest = m;
#endif
}
template <class A, class B> DML_FN void log_sum_merge(const LogSum<A, false>& a, LogSum<B, false>& b) { b.sum += a.sum; }
template <class A, class B> DML_FN void log_sum_merge(const LogSum<A, true>& a, LogSum<B, true>& b) {
  if (!(a.sum > 0)) return;
  B m = max(B(a.highest), b.highest);
  b.sum = (b.sum > 0 ? b.sum * exp(b.highest - m) : b.sum) + B(a.sum) * exp(B(a.highest) - m);
  b.highest = m;
}
template <class T> DML_FN T log_sum_result(const LogSum<T, false>& r, T shift) {
  return r.sum == T(0) ? Limit<T>::lowest : shift + log(r.sum);
}
template <class T> DML_FN T log_sum_result(const LogSum<T, true>& r, T) {
  return r.sum == T(0) ? Limit<T>::lowest : r.highest + log(r.sum);
}
// The same minus x, as the difference of two exponents that are near each other: their own height, which may be a scale of 100,
// rounds nothing.
template <class T> DML_FN T log_sum_above(const LogSum<T, false>& r, T shift, T x) {
  return r.sum == T(0) ? Limit<T>::lowest : (shift - x) + log(r.sum);
}
template <class T> DML_FN T log_sum_above(const LogSum<T, true>& r, T, T x) {
  return r.sum == T(0) ? Limit<T>::lowest : (r.highest - x) + log(r.sum);
}
// exp(x - result) * weight for one more x: the slope of a log-sum. Narrow: exp(x - shift) is shared by row and column.
template <class V, bool Wide> struct LogSumSlope;
template <class V> struct LogSumSlope<V, false> { V factor; };
template <class V> struct LogSumSlope<V, true> { V factor, result; };
template <class T> DML_FN void log_sum_slope(T result, T weight, T shift, LogSumSlope<T, false>& r) {
  r.factor = weight == T(0) || result <= Limit<T>::lowest ? T(0) : weight * exp(shift - result);
}
template <class T> DML_FN void log_sum_slope(T result, T weight, T, LogSumSlope<T, true>& r) {
  r.factor = result <= Limit<T>::lowest ? T(0) : weight;
  r.result = result <= Limit<T>::lowest ? -Limit<T>::lowest : result;  // exp(x - result) is then 0, not infinity times 0
}
// The slope of weight * log-sum itself, where `result` is that of the sum alone.
template <class T> DML_FN void log_sum_slope_of(const LogSum<T, false>& r, T weight, LogSumSlope<T, false>& w) {
  w.factor = r.sum == T(0) ? T(0) : weight / r.sum;
}
template <class T> DML_FN void log_sum_slope_of(const LogSum<T, true>& r, T weight, LogSumSlope<T, true>& w) {
  w.factor = r.sum == T(0) ? T(0) : weight / r.sum;
  w.result = r.sum == T(0) ? -Limit<T>::lowest : r.highest;
}
template <class V> DML_FN V log_sum_slope_at(V x, typename Scalar<V>::type shift, const LogSumSlope<V, false>& r) {
  return exp(x - shift) * r.factor;
}
template <class V> DML_FN V log_sum_slope_at(V x, typename Scalar<V>::type, const LogSumSlope<V, true>& r) {
  return exp(x - r.result) * r.factor;
}

// Beside exponents that reach `most` there is always the exponent 0 ("1 + sum"): the shift that keeps sums of 10^6 terms finite
// while what underflows is below 1e-11 of the 1. Narrow suffices up to 120 (float).
template <class T> DML_FN T shift_beside_one(T most) { return min(max(most - T(60), T(0)), T(60)); }

// Euclidean distance of unit vectors from their cosine. Below the resolution of the cosine (d^2 <= 4 epsilon) the points
// count as one: distance 0 and slope 0, so that gradients stay finite at coincident points.
template <class V> DML_FN V distance(V s) {
  using T = typename Scalar<V>::type;
  V q = T(2) - T(2) * s;
  return select(q > splat<V>(4 * Limit<T>::epsilon), q * reciprocal_sqrt(max(q, splat<V>(4 * Limit<T>::epsilon))), splat<V>(0));
}
template <class V> DML_FN V distance_slope(V s) {  // d distance / d s
  using T = typename Scalar<V>::type;
  V q = T(2) - T(2) * s;
  return select(q > splat<V>(4 * Limit<T>::epsilon), -reciprocal_sqrt(max(q, splat<V>(4 * Limit<T>::epsilon))), splat<V>(0));
}

// What a loss takes for the distance of two vectors with similarity s. The similarity of kDotDistance is the product of the
// vectors as they are, that of the others their cosine. A pair that must not count is far away in each of them.
enum DistanceKind { kEuclidean, kSquaredEuclidean, kCosineDistance, kDotDistance };
template <DistanceKind Kind, class V> DML_FN V distance_of(V s) {
  using T = typename Scalar<V>::type;
  if constexpr (Kind == kEuclidean) return distance(s);
  else if constexpr (Kind == kSquaredEuclidean) return T(2) - T(2) * s;
  else if constexpr (Kind == kCosineDistance) return T(1) - s;
  else return -s;
}
template <DistanceKind Kind, class V> DML_FN V distance_slope_of(V s) {  // d distance / d s
  using T = typename Scalar<V>::type;
  if constexpr (Kind == kEuclidean) return distance_slope(s);
  else if constexpr (Kind == kSquaredEuclidean) return splat<V>(T(-2));
  else return splat<V>(T(-1));
}

template <class V> struct Nothing {};  // for a loss without limits or sums
template <class T> struct Interval { T from, to; };  // from <= m < to
// The lower end of an interval that shall not hold x >= 0 itself. Above 0 a normal number, lest processors that flush others to 0.
DML_FN float next_above(float x) { return max(::nextafterf(x, 8.0f), 1.2e-38f); }
DML_FN double next_above(double x) { return max(::nextafter(x, 8.0), 2.3e-308); }

DML_END
