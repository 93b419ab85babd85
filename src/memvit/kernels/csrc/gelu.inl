// GELU of a vector. Included inside a namespace, after vectors.inl.

// x times the normal distribution's share below x, which is 1/2 plus an odd function of x: x times a quotient of polynomials
// in x^2, fitted for the smallest error of the result. That is 3e-8, less than rounding adds, or 2e-6 for bfloat16.
template <bool IsExact>
static inline Vec gelu(Vec x) {
  const Vec far = set1(IsExact ? 5.6f : 4.5f);  // nothing changes farther out
  const Vec above = max(sub(set1(0), far), x);  // in this order what is not a number stays so
  const Vec near = min(far, above);
  const Vec s = mul(near, near);
  Vec p, q;
  if constexpr (IsExact) {
    p = fma(set1(2.1710421e-8f), s, set1(6.5902803e-6f));
    q = fma(set1(1.18512563e-6f), s, set1(8.10052341e-5f));
    p = fma(p, s, set1(1.90140996e-4f));
    q = fma(q, s, set1(2.00327875e-3f));
    p = fma(p, s, set1(4.80533773e-3f));
    q = fma(q, s, set1(2.98032448e-2f));
    p = fma(p, s, set1(3.58459788e-2f));
    q = fma(q, s, set1(2.56515294e-1f));
    p = fma(p, s, set1(3.98941902e-1f));
  } else {
    p = fma(set1(3.3336853e-5f), s, set1(3.83221949e-3f));
    q = fma(set1(1.16681228e-3f), s, set1(2.38065817e-2f));
    p = fma(p, s, set1(2.73836078e-2f));
    q = fma(q, s, set1(2.35285115e-1f));
    p = fma(p, s, set1(3.98932892e-1f));
  }
  q = fma(q, s, set1(1.f));
  return mul(above, fma(mul(near, p), inverse<IsExact>(q), set1(0.5f)));
}
