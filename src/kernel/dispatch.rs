//! One set of kernels per instruction set, chosen once per process.

#![expect(unsafe_code, reason = "functions compiled for CPU features must be called as unsafe")]

use std::fmt;
use std::sync::OnceLock;

use super::bracket::{self, Found, Guess, Joint, Judged, Rows, Space};
use super::dtype::{self, Float};
use super::low_rank::{self, LowRank};
use super::pcb::{self, Bounds, Cut, Inter, Scratch, Softmax, Tally};
use super::{
    blend, dense, divergence, keys, math, mean, moments, pack, products, ram, random, ranked, sce,
    thin, ties, unify,
};

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// What the target has without detection. The definition.
    Scalar,
    /// 256-bit vectors.
    Avx2,
    /// 512-bit vectors.
    Avx512,
}

impl Level {
    const ALL: [Level; 3] = [Level::Scalar, Level::Avx2, Level::Avx512];

    fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }

    /// Whether this machine has it. Constant for the life of the process.
    fn is_available(self) -> bool {
        match self {
            Level::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt"),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("popcnt")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Level::Avx2 | Level::Avx512 => false,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A level that is available: made only by [`Kernels`], for bodies that call vector instructions by name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lanes(Level);

impl Lanes {
    #[inline(always)]
    pub(super) fn level(self) -> Level {
        self.0
    }

    /// What is available everywhere.
    #[cfg(test)]
    pub(super) fn plain() -> Self {
        Self(Level::Scalar)
    }
}

/// `REFLOW_CPU` asks for something that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("REFLOW_CPU={asked}: this machine has {}; unset it or name one of these", available())]
pub struct KernelError {
    asked: String,
}

fn available() -> String {
    let names: Vec<&str> = Kernels::available().map(|k| k.level.name()).collect();
    names.join(", ")
}

/// The kernels of one instruction set.
#[derive(Debug, PartialEq, Eq)]
pub struct Kernels {
    level: Level,
}

static ALL: [Kernels; 3] = [
    Kernels { level: Level::Scalar },
    Kernels { level: Level::Avx2 },
    Kernels { level: Level::Avx512 },
];

/// The kernels to use: the widest this machine has, or what the environment variable
/// `REFLOW_CPU` (`scalar`, `avx2` or `avx512`) asks for.
///
/// # Errors
/// [`KernelError`] if the variable names something else, or something this machine lacks.
pub fn select() -> Result<&'static Kernels, KernelError> {
    static CHOSEN: OnceLock<Result<&'static Kernels, KernelError>> = OnceLock::new();
    CHOSEN.get_or_init(|| choose(std::env::var("REFLOW_CPU").ok().as_deref())).clone()
}

fn choose(asked: Option<&str>) -> Result<&'static Kernels, KernelError> {
    let mut available = Kernels::available();
    match asked {
        None | Some("") => Ok(available.last().unwrap_or(&ALL[0])),
        Some(name) => available
            .find(|kernels| kernels.level.name() == name)
            .ok_or_else(|| KernelError { asked: name.to_owned() }),
    }
}

impl Kernels {
    /// All that this machine can run, the scalar ones first.
    pub fn available() -> impl Iterator<Item = &'static Kernels> {
        ALL.iter().zip(Level::ALL).filter(|(_, level)| level.is_available()).map(|(k, _)| k)
    }

    /// The instruction set.
    pub fn level(&self) -> Level {
        self.level
    }
}

/// Calls a body, with the level as [`Lanes`] if it asks for that.
macro_rules! call {
    (($level:expr) $body:path, $($arg:ident),*) => { $body($($arg),*) };
    (($level:expr) [lanes] $body:path, $($arg:ident),*) => { $body(Lanes($level), $($arg),*) };
}

/// Compiles a body once per instruction set, as a method of [`Kernels`].
macro_rules! kernels {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $([$lanes:ident])? $body:path;)*) => {
        impl Kernels {
            $(
                $(#[$doc])*
                #[allow(clippy::too_many_arguments, reason = "one body, one call, no struct to fill in between")]
                pub fn $name(&self, $($arg: $ty),*) $(-> $ret)? {
                    #[cfg(target_arch = "x86_64")]
                    #[target_feature(enable = "avx2,popcnt")]
                    #[allow(clippy::too_many_arguments, reason = "as above")]
                    fn avx2($($arg: $ty),*) $(-> $ret)? {
                        call!((Level::Avx2) $([$lanes])? $body, $($arg),*)
                    }
                    #[cfg(target_arch = "x86_64")]
                    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt")]
                    #[allow(clippy::too_many_arguments, reason = "as above")]
                    fn avx512($($arg: $ty),*) $(-> $ret)? {
                        call!((Level::Avx512) $([$lanes])? $body, $($arg),*)
                    }
                    match self.level {
                        // SAFETY: `Kernels` of this level are handed out only where
                        // `Level::is_available` has found the features.
                        #[cfg(target_arch = "x86_64")]
                        Level::Avx2 => unsafe { avx2($($arg),*) },
                        // SAFETY: as above.
                        #[cfg(target_arch = "x86_64")]
                        Level::Avx512 => unsafe { avx512($($arg),*) },
                        _ => call!((Level::Scalar) $([$lanes])? $body, $($arg),*),
                    }
                }
            )*
        }
    };
}

kernels! {
    /// `out` = the mean of rows by `factors[i] * (weights[i] + floor)`, element by element, in doubles; where these add up
    /// to zero, by `factors` alone.
    fn weighted_mean(rows: &[&[f32]], weights: &[&[f32]], factors: &[f64], floor: f64, out: &mut [f32])
        = mean::weighted_mean;

    /// `out` = the mean of rows by `factors`, in doubles.
    fn plain_mean(rows: &[&[f32]], factors: &[f64], out: &mut [f32]) = mean::plain_mean;

    /// Adds to `sums` what rows `first..` of a symmetric matrix and their mirror image give with each of `vectors`, looking
    /// at the lower triangle only: see [`dense`].
    fn add_symmetric(rows: &[f64], first: usize, width: usize, vectors: &[f32], sums: &mut [f64])
        = dense::add_symmetric;

    /// Makes the packed rows `begin..end` of a matrix its Cholesky factor's; returns the first row whose pivot is not above
    /// `least` of it.
    fn factor_panel(panel: &mut [f64], begin: usize, end: usize, least: &[f64]) -> Option<usize>
        = dense::factor_panel;

    /// Makes elements `columns` of the packed rows `run`, below the panel of that number, those of the factor.
    fn factor_rows(rows: &mut [f64], run: (usize, usize), panel: &[f64], columns: (usize, usize))
        = dense::factor_rows;

    /// Solves for each of `sums`, rows of `width` elements, with the packed factor of the matrix.
    fn substitute(factor: &[f64], width: usize, sums: &mut [f64]) = dense::substitute;

    /// Whether some value is below zero.
    fn any_negative(values: &[f32]) -> bool = mean::any_negative;

    /// Decodes little-endian `bytes` to `f32`, `out.len()` elements. F64 is rounded to nearest
    /// even; all else is exact.
    fn decode(float: Float, bytes: &[u8], out: &mut [f32]) = dtype::decode;

    /// The same. Returns what `max_magnitude_bits` says of it.
    fn decode_with_largest(float: Float, bytes: &[u8], out: &mut [f32]) -> u32
        = dtype::decode_with_largest;

    /// Decodes an expert's `bytes` and subtracts `base`: a block of its task vector. Returns what `max_magnitude_bits`
    /// says of it.
    fn decode_minus_base(float: Float, bytes: &[u8], base: &[f32], out: &mut [f32]) -> u32
        = dtype::decode_minus_base;

    /// Adds `scale * left x right` to a run of elements that begins with element `first` of the matrix.
    fn add_low_rank(product: &LowRank, first: u64, values: &mut [f32]) = low_rank::add_low_rank;

    /// Subtracts `base` from each element.
    fn subtract(base: &[f32], values: &mut [f32]) = dtype::subtract;

    /// Encodes to `out`, rounding to nearest even. The F8 types saturate at their largest finite
    /// value; the others overflow to infinity.
    fn encode(float: Float, values: &[f32], out: &mut [u8]) = dtype::encode;

    /// The greatest `bits & 0x7fff_ffff`: at or above [`keys::INFINITY`] some value is infinite
    /// or NaN. 0 for no values.
    fn max_magnitude_bits(values: &[f32]) -> u32 = keys::max_magnitude_bits;

    /// Keys of magnitudes: sorted as |value| is.
    fn magnitude_keys(values: &[f32], out: &mut [u32]) = keys::magnitude_keys;

    /// Keys of signed values: sorted as the values are, -0.0 as 0.0.
    fn score_keys(values: &[f32], out: &mut [u32]) = keys::score_keys;

    /// The sum of the products of two rows of up to [`moments::DOT_MOST`] elements, in two exact parts.
    fn dot(x: &[f32], y: &[f32], top: i32) -> [i64; 2] = moments::dot;

    /// The sum of the magnitudes of a row of up to [`moments::DOT_MOST`] elements, in two exact parts: `dot` of them and ones.
    fn magnitude_sum(x: &[f32], top: i32) -> [i64; 2] = moments::magnitude_sum;

    /// The sums of the magnitudes of a row, and of those of its elements that are noted in `kept`, in the coarse one of the parts of
    /// `magnitude_sum`; `None` if something is left for the fine one.
    fn magnitude_sums(x: &[f32], kept: &[u16], top: i32) -> Option<[i64; 2]>
        = moments::magnitude_sums;

    /// The sum of the products of two rows, in doubles. Finite if the values are.
    fn product_sum(x: &[f32], y: &[f32]) -> f64 = products::product_sum;

    /// The same for x with itself, x with y, and y with itself.
    fn product_sums(x: &[f32], y: &[f32]) -> [f64; 3] = products::product_sums;

    /// The sums of products down the columns of two matrices of rows of `sums.len()` elements.
    fn column_products(x: &[f32], y: &[f32], sums: &mut [f64]) = products::column_products;

    /// In how many columns at least two of the rows are not zero, and in how many both signs occur.
    fn clashes(rows: &[&[f32]]) -> [u64; 2] = moments::clashes;

    /// Number of zeros, of either sign.
    fn zeros(values: &[f32]) -> u64 = moments::zeros;

    /// `out` = sum of `weights[i] * rows[i]`, added in order, starting from zero.
    fn weighted_sum(rows: &[&[f32]], weights: &[f32], out: &mut [f32]) = blend::weighted_sum;

    /// The same with a weight for each element, in rows of their own.
    fn weighted_rows(rows: &[&[f32]], weights: &[&[f32]], out: &mut [f32]) = blend::weighted_rows;

    /// `weighted_sum` with each product and the sum that it is added to rounded together.
    fn fused_sum(rows: &[&[f32]], weights: &[f32], out: &mut [f32]) = blend::fused_sum;

    /// The weighted sum of those elements that have the sign of the whole sum (`votes`), which counts as
    /// positive if it is zero; `shares` = the sum of their weights, 1 if that is zero.
    fn elected_sum(
        rows: &[&[f32]], weights: &[f32], votes: &mut [f32], shares: &mut [f32], out: &mut [f32],
    ) = blend::elected_sum;

    /// `out` = what lies between `base` and `row`: the row's element where the two differ by up to `t`, else
    /// less of it, the further away it is.
    fn near(base: &[f32], row: &[f32], t: f32, out: &mut [f32]) = blend::near;

    /// `out` = `factor * row`.
    fn scale(row: &[f32], factor: f32, out: &mut [f32]) = blend::scale;

    /// Divides each element by that of another row.
    fn divide(divisors: &[f32], out: &mut [f32]) = blend::divide;

    /// Divides each element by one number.
    fn divide_by(divisor: f32, out: &mut [f32]) = blend::divide_by;

    /// `out` = `base + factor * out`.
    fn add_base(base: &[f32], factor: f32, out: &mut [f32]) = blend::add_base;

    /// `out` = the values whose magnitudes, as bits, lie in `least..=most`; zero for the others.
    fn keep_between(values: &[f32], range: (u32, u32), out: &mut [f32]) = thin::keep_between;

    /// `out` = the values where `marks` is not zero; zero for the others.
    fn keep_marked(marks: &[f32], values: &[f32], out: &mut [f32]) = thin::keep_marked;

    /// `out` = the values whose bits are set; bit `first` is that of the first value. Zero for the others.
    fn keep_bits(bits: &[u16], first: usize, values: &[f32], out: &mut [f32])
        = [lanes] thin::keep_bits;

    /// Notes in `noted`, a bit for each element, which magnitudes, as bits, are not below `least`.
    fn note_from(values: &[f32], least: u32, noted: &mut [u16]) = [lanes] thin::note_from;

    /// Appends the values that are noted to `packed`.
    fn pack_noted(noted: &[u16], values: &[f32], packed: &mut Vec<f32>)
        = [lanes] thin::pack_noted;

    /// How many magnitudes have these bits.
    fn count_magnitude(values: &[f32], key: u32) -> u64 = thin::count_magnitude;

    /// Multiplies each element by one number.
    fn multiply_by(factor: f32, out: &mut [f32]) = thin::multiply_by;

    /// Random numbers of 24 bits for the elements from `first` on.
    fn draw(key: [u32; 2], first: u64, out: &mut [u32]) = random::draw;

    /// Notes in `kept`, a bit for each element, which numbers lie below `limit`. Returns the largest magnitude of the
    /// values that have them, as bits.
    fn note_below(numbers: &[u32], limit: u32, values: &[f32], kept: &mut [u16]) -> u32
        = [lanes] random::note_below;

    /// `out` = `factor` times the values that are noted in `kept`; zero for the others.
    fn keep_noted(kept: &[u16], factor: f32, values: &[f32], out: &mut [f32]) = random::keep_noted;

    /// Marks elements with numbers below [`ranked::MARK`] whose random numbers lie below the limits of the ranks of their
    /// magnitudes; zeros as it comes. Returns whether it was done: where too many ranks would have to be counted, it is not.
    fn mark_ranked(
        values: &[f32], numbers: &[u32], limits: &ranked::Limits, places: &mut ranked::Places, marks: &mut [u32],
    ) -> bool = [lanes] ranked::mark_ranked;

    /// The population variance of each column.
    fn variances(rows: &[&[f32]], out: &mut [f32]) = sce::variances;

    /// `out` = the weighted sum of those elements that have the sign of `votes`; `shares` = the sum of their
    /// weights.
    fn agreeing_sum(
        rows: &[&[f32]], weights: &[f32], votes: &[f32], shares: &mut [f32], out: &mut [f32],
    ) = sce::agreeing_sum;

    /// Divides each element by that of another row, or by `least` if that is larger.
    fn divide_at_least(divisors: &[f32], least: f32, out: &mut [f32]) = sce::divide_at_least;

    /// `counts` = how many rows are above `epsilon` in magnitude, in each column.
    fn contributors(rows: &[&[f32]], epsilon: f32, counts: &mut [f32]) = ram::contributors;

    /// How many elements of a row are above `epsilon`: together with other rows, and alone.
    fn shared_and_alone(row: &[f32], epsilon: f32, counts: &[f32]) -> [u64; 2]
        = ram::shared_and_alone;

    /// `out` = the sum of all elements above `epsilon`: divided by their number in the column, or, where it is one
    /// alone, multiplied by its row's factor.
    fn reinforced_sum(
        rows: &[&[f32]], epsilon: f32, factors: &[f32], counts: &[f32], out: &mut [f32],
    ) = ram::reinforced_sum;

    /// How many values are above zero, and how many below.
    fn signs(values: &[f32]) -> [u64; 2] = ties::signs;

    /// `out` = in each column, the sum of those elements that have the sign of `votes`, or of `tie` where that
    /// is zero; `counts` = their number, at least 1.
    fn disjoint_sum(
        rows: &[&[f32]], votes: &[f32], tie: f32, counts: &mut [f32], out: &mut [f32],
    ) = ties::disjoint_sum;

    /// The same sum, each element multiplied by its row's weight.
    fn disjoint_weighted(
        rows: &[&[f32]], votes: &[f32], tie: f32, weights: &[f32], out: &mut [f32],
    ) = ties::disjoint_weighted;

    /// The same with the element of the largest magnitude instead of the sum.
    fn disjoint_max(rows: &[&[f32]], votes: &[f32], tie: f32, out: &mut [f32])
        = ties::disjoint_max;

    /// `out` = the task vector that experts elect; `shares` (a row of the block's length for each) = the value of the one that
    /// has it, for those that agree, else NaN; `sums` = for each, the magnitudes of its task vector, and of what it has of `out`.
    fn unify(
        base: &[f32], rows: &[&[f32]], scratch: &mut unify::Scratch, out: &mut [f32], shares: &mut [f32],
        sums: &mut [f64],
    ) = unify::unify;

    /// Packs rows of `len` elements as [`unify`](Kernels::unify) fills them: a bit for each element that is there, lowest
    /// first, in whole bytes for each row; and the values of elements that are there in any row, one behind another.
    fn pack_unified(rows: &[f32], len: usize, masks: &mut [u8], values: &mut Vec<f32>)
        = [lanes] unify::pack_unified;

    /// e to the power of each value, within 2 ulp.
    fn exp(values: &[f32], out: &mut [f32]) = math::exp_all;

    /// The hyperbolic tangent of each value, within 2 ulp.
    fn tanh(values: &[f32], out: &mut [f32]) = math::tanh_all;

    /// The Kullback-Leibler divergence of softmax(x) from softmax(y), 1e-8 added to each probability.
    fn divergence(x: &[f32], y: &[f32], scratch: &mut divergence::Scratch) -> f64
        = divergence::divergence;

    /// |x - y| * factor for each element.
    fn importances(x: &[f32], y: &[f32], factor: f32, out: &mut [f32]) = divergence::importances;

    /// `out` = y + (x - y) where |x - y| * factor reaches the threshold, else y.
    fn fuse(x: &[f32], y: &[f32], factor: f32, threshold: f32, out: &mut [f32]) = divergence::fuse;

    /// Competition scores B_i of all experts: `out` holds one row of the block's length per
    /// expert. See [`pcb`] for the formulas.
    fn pcb_scores(
        inter: Inter, taus: &[&[f32]], bounds: &[Bounds], scratch: &mut Scratch, out: &mut [f32],
    ) = pcb::scores;

    /// Merged values of a block, from its scores (laid out as by `pcb_scores`).
    fn pcb_merge(
        base: &[f32], taus: &[&[f32]], scores: &[f32], bounds: &[Bounds], cuts: &[Cut],
        lambdas: &[f32], scratch: &mut Scratch, out: &mut [f32], tallies: &mut [Tally],
    ) = pcb::merge;

    /// Merged values of a block from its task vectors: `pcb_scores` and `pcb_merge` in one, with the same bits.
    fn pcb_map(
        inter: Inter, base: &[f32], taus: &[&[f32]], bounds: &[Bounds], cuts: &[Cut],
        lambdas: &[f32], scratch: &mut Scratch, out: &mut [f32], tallies: &mut [Tally],
    ) = [lanes] pcb::map;

    /// The share of each expert in the merged values of a block, without lambda: `out` holds one row of the block's
    /// length per expert. `weighted_sum` of them by the lambdas and `add_base` give the bits of `pcb_map`.
    fn pcb_shares(
        inter: Inter, base: &[f32], taus: &[&[f32]], bounds: &[Bounds], cuts: &[Cut],
        scratch: &mut Scratch, out: &mut [f32], tallies: &mut [Tally],
    ) = pcb::shares;

    /// S: the sum of the task vectors.
    fn pcb_sum(taus: &[&[f32]], out: &mut [f32]) = pcb::sum;

    /// Compares scores that are not quite known with a threshold that is not quite known. What cannot be decided is
    /// appended to `found`. See [`bracket`].
    fn pcb_judge(
        factor: f32, tau: &[f32], sum: &[f32], guess: &Guess, rows: &mut Rows, found: &mut Vec<Found>,
    ) -> Judged = [lanes] bracket::judge;

    /// The same for scores that depend on the bounds of all experts.
    fn pcb_judge_together(
        joint: &Joint, taus: &[&[f32]], space: &mut Space, marks: &mut [u32], judged: &mut [Judged],
    ) = bracket::judge_together;

    /// Scores of elements of one expert, given by its task vector and the sum of all.
    fn pcb_rescore(
        factor: f32, tau: &[f32], sum: &[f32], bounds: Bounds, rows: &mut Rows, out: &mut [f32],
    ) = bracket::rescore;

    /// Counts the keys of magnitudes below a bracket of keys and appends those in it to `found`.
    fn magnitudes_within(values: &[f32], span: (u32, u32), found: &mut Vec<u32>) -> u32
        = bracket::magnitudes_within;

    /// Counts the keys of magnitudes below a bracket of keys and those in it, and notes the places of the latter among the
    /// values at the front of `found`, which grows to what it needs.
    fn places_within(values: &[f32], span: (u32, u32), found: &mut Vec<u32>) -> [u32; 2]
        = [lanes] bracket::places_within;

    /// A bit for each flag that is not zero.
    fn mask(flags: &[u32; 16]) -> u16 = [lanes] pack::mask;

    /// Writes the elements that a mask wants to the front of `to`; what is behind them there has no meaning.
    fn pack(mask: u16, from: &[f32; 16], to: &mut [f32; 16]) = [lanes] pack::pack;

    /// Writes the first elements of `from` to where a mask wants them.
    fn unpack(mask: u16, from: &[f32; 16], to: &mut [f32; 16]) = [lanes] pack::unpack;

    /// Products of two rows.
    fn products(a: &[f32], b: &[f32], out: &mut [f32]) = pcb::products;

    /// exp of min-max scaled products, shifted so that the greatest result is 1.
    fn softmax_numerators(softmax: &Softmax, products: &[f32], out: &mut [f32])
        = pcb::softmax_numerators;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_can_ask_for_a_path() {
        assert_eq!(choose(Some("scalar")).unwrap().level(), Level::Scalar);
        assert!(choose(None).is_ok());
        let message = choose(Some("sse9")).unwrap_err().to_string();
        assert!(message.contains("REFLOW_CPU=sse9") && message.contains("scalar"), "{message}");
    }
}
