# Lines 'a b' of neighbouring measurements: medians of both and of the ratio, as cells of a table: a, b, ratio, lowest to highest.
# -v invert=1: a / b instead of b / a.
function median(v, n) { return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2 }
function sorted(v, n,  i, j, t) { for (i = 2; i <= n; i++) for (j = i; j > 1 && v[j] < v[j-1]; j--) { t = v[j]; v[j] = v[j-1]; v[j-1] = t } }
{ a[NR] = $1; b[NR] = $2; r[NR] = invert ? $1 / $2 : $2 / $1 }
END { sorted(a, NR); sorted(b, NR); sorted(r, NR)
  printf "| %s | %.2f | %.2f | **%.2f** | %.2f to %.2f |\n", name, median(a, NR), median(b, NR), median(r, NR), r[1], r[NR] }
