//! faer's Cholesky factor and triangular solves of small blocks, in doubles that are the same bits on any CPU.
//!
//! For `f64`, faer takes fused and wider instructions where a CPU has them, and cuts sums by the sizes of its caches. A
//! number type of one's own, with plain arithmetic and no vectors, keeps it off those paths: what is left are loops in
//! the order in which they are written. They are slow, so the blocks are small, and the products between them `dense`'s.

use std::ops::{
    Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Rem, RemAssign, Sub, SubAssign,
};

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{
    LltError, LltParams, LltRegularization, cholesky_in_place, cholesky_in_place_scratch,
};
use faer::linalg::triangular_solve::{
    solve_lower_triangular_in_place, solve_upper_triangular_in_place,
};
use faer::traits::num_traits::{Num, One, Zero};
use faer::traits::pulp::{Scalar, Simd};
use faer::traits::{ComplexField, RealField, SimdCapabilities};
use faer::{MatMut, MatRef, Par, Spec};

/// A double that knows plain arithmetic only.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(super) struct Fixed(pub(super) f64);

/// A square block by rows, of which the lower triangle is looked at, and made its Cholesky factor's.
///
/// # Errors
/// The first row whose pivot is not above zero, or not finite; those before it are done.
pub(super) fn factor(block: &mut [Fixed], size: usize) -> Result<(), usize> {
    let params = Spec::<LltParams, Fixed>::default();
    let mut memory = MemBuffer::new(cholesky_in_place_scratch(size, Par::Seq, params));
    let matrix = MatMut::from_row_major_slice_mut(block, size, size);
    let stack = MemStack::new(&mut memory);
    match cholesky_in_place(matrix, LltRegularization::default(), Par::Seq, stack, params) {
        Ok(_) => Ok(()),
        Err(LltError::NonPositivePivot { index }) => Err(index),
    }
}

/// Solves `L x = row` for each row of `size` elements, with the factor L that `factor` left.
pub(super) fn solve(block: &[Fixed], size: usize, rows: &mut [Fixed]) {
    let factor = MatRef::from_row_major_slice(block, size, size);
    solve_lower_triangular_in_place(factor, columns(size, rows), Par::Seq);
}

/// The same with the transpose of L.
pub(super) fn solve_transposed(block: &[Fixed], size: usize, rows: &mut [Fixed]) {
    let factor = MatRef::from_row_major_slice(block, size, size).transpose();
    solve_upper_triangular_in_place(factor, columns(size, rows), Par::Seq);
}

fn columns(size: usize, rows: &mut [Fixed]) -> MatMut<'_, Fixed> {
    let count = rows.len() / size;
    MatMut::from_column_major_slice_mut(rows, size, count)
}

macro_rules! operators {
    ($($op:ident $call:ident, $assign:ident $call_assign:ident;)*) => {$(
        operators!(@ $op $call: Fixed, Fixed; Fixed, &Fixed; &Fixed, Fixed; &Fixed, &Fixed);
        impl $assign for Fixed {
            #[inline(always)]
            fn $call_assign(&mut self, other: Fixed) {
                self.0.$call_assign(other.0);
            }
        }
        impl $assign<&Fixed> for Fixed {
            #[inline(always)]
            fn $call_assign(&mut self, other: &Fixed) {
                self.0.$call_assign(other.0);
            }
        }
    )*};
    (@ $op:ident $call:ident: $($left:ty, $right:ty);*) => {$(
        impl $op<$right> for $left {
            type Output = Fixed;
            #[inline(always)]
            fn $call(self, other: $right) -> Fixed {
                Fixed(self.0.$call(other.0))
            }
        }
    )*};
}

operators! {
    Add add, AddAssign add_assign;
    Sub sub, SubAssign sub_assign;
    Mul mul, MulAssign mul_assign;
    Div div, DivAssign div_assign;
    Rem rem, RemAssign rem_assign;
}

impl Neg for Fixed {
    type Output = Fixed;
    #[inline(always)]
    fn neg(self) -> Fixed {
        Fixed(-self.0)
    }
}

impl Neg for &Fixed {
    type Output = Fixed;
    #[inline(always)]
    fn neg(self) -> Fixed {
        Fixed(-self.0)
    }
}

impl Zero for Fixed {
    fn zero() -> Self {
        Fixed(0.0)
    }
    fn is_zero(&self) -> bool {
        self.0 == 0.0
    }
}

impl One for Fixed {
    fn one() -> Self {
        Fixed(1.0)
    }
}

impl Num for Fixed {
    type FromStrRadixErr = <f64 as Num>::FromStrRadixErr;
    fn from_str_radix(text: &str, radix: u32) -> Result<Self, Self::FromStrRadixErr> {
        f64::from_str_radix(text, radix).map(Fixed)
    }
}

/// Methods of numbers, in terms of doubles.
macro_rules! plain {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $ret:ty = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name($($arg: $ty),*) -> $ret {
            $body
        }
    )*};
}

/// Methods that faer calls for numbers with vectors only.
macro_rules! vectors {
    ($($name:ident($($arg:ty),*) $(-> $ret:ty)?;)*) => {$(
        fn $name<S: Simd>(_: &S, $(_: $arg),*) $(-> $ret)? {
            unreachable!("no vectors: SIMD_CAPABILITIES")
        }
    )*};
}

impl RealField for Fixed {
    plain! {
        epsilon_impl() -> Self = Fixed(f64::EPSILON);
        nbits_impl() -> usize = f64::MANTISSA_DIGITS as usize;
        min_positive_impl() -> Self = Fixed(f64::MIN_POSITIVE);
        max_positive_impl() -> Self = Fixed(f64::MIN_POSITIVE.recip());
        sqrt_min_positive_impl() -> Self = Fixed(f64::MIN_POSITIVE.sqrt());
        sqrt_max_positive_impl() -> Self = Fixed(f64::MIN_POSITIVE.recip().sqrt());
    }
}

#[expect(unsafe_code, reason = "two methods of the trait are declared so; they are never called")]
impl ComplexField for Fixed {
    type Arch = Scalar;
    type Index = u64;
    type Real = Self;
    type Unit = Self;
    type SimdCtx<S: Simd> = S;
    type SimdIndex<S: Simd> = ();
    type SimdMask<S: Simd> = ();
    type SimdMemMask<S: Simd> = ();
    type SimdVec<S: Simd> = ();

    const IS_REAL: bool = true;
    const SIMD_CAPABILITIES: SimdCapabilities = SimdCapabilities::Copy;

    plain! {
        zero_impl() -> Self = Fixed(0.0);
        one_impl() -> Self = Fixed(1.0);
        nan_impl() -> Self = Fixed(f64::NAN);
        infinity_impl() -> Self = Fixed(f64::INFINITY);
        from_real_impl(x: &Self) -> Self = *x;
        from_f64_impl(x: f64) -> Self = Fixed(x);
        real_part_impl(x: &Self) -> Self = *x;
        imag_part_impl(_x: &Self) -> Self = Fixed(0.0);
        copy_impl(x: &Self) -> Self = *x;
        conj_impl(x: &Self) -> Self = *x;
        recip_impl(x: &Self) -> Self = Fixed(1.0 / x.0);
        sqrt_impl(x: &Self) -> Self = Fixed(x.0.sqrt());
        abs_impl(x: &Self) -> Self = Fixed(x.0.abs());
        abs1_impl(x: &Self) -> Self = Fixed(x.0.abs());
        abs2_impl(x: &Self) -> Self = x * x;
        mul_real_impl(x: &Self, y: &Self) -> Self = x * y;
        mul_pow2_impl(x: &Self, y: &Self) -> Self = x * y;
        is_finite_impl(x: &Self) -> bool = x.0.is_finite();
    }

    fn simd_ctx<S: Simd>(simd: S) -> S {
        simd
    }

    fn ctx_from_simd<S: Simd>(simd: &S) -> S {
        *simd
    }

    vectors! {
        simd_mask_between(u64, u64);
        simd_mem_mask_between(u64, u64);
        simd_splat(&Self);
        simd_splat_real(&Self);
        simd_add((), ());
        simd_sub((), ());
        simd_neg(());
        simd_conj(());
        simd_abs1(());
        simd_abs_max(());
        simd_mul_real((), ());
        simd_mul_pow2((), ());
        simd_mul((), ());
        simd_conj_mul((), ());
        simd_mul_add((), (), ());
        simd_conj_mul_add((), (), ());
        simd_abs2(());
        simd_abs2_add((), ());
        simd_reduce_sum(()) -> Self;
        simd_reduce_max(()) -> Self;
        simd_equal((), ());
        simd_less_than((), ());
        simd_less_than_or_equal((), ());
        simd_greater_than((), ());
        simd_greater_than_or_equal((), ());
        simd_select((), (), ());
        simd_index_select((), (), ());
        simd_index_splat(u64);
        simd_index_add((), ());
        simd_index_less_than((), ());
        simd_and_mask((), ());
        simd_or_mask((), ());
        simd_not_mask(());
        simd_first_true_mask(()) -> usize;
    }

    unsafe fn simd_mask_load_raw<S: Simd>(_: &S, (): (), _: *const ()) {
        unreachable!("no vectors: SIMD_CAPABILITIES")
    }

    unsafe fn simd_mask_store_raw<S: Simd>(_: &S, (): (), _: *mut (), (): ()) {
        unreachable!("no vectors: SIMD_CAPABILITIES")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits, and not only about what is right: another order of the same sums would be other outputs.
    #[test]
    fn factors_and_solutions_are_these_bits() {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            Fixed((state >> 40) as f64 / f64::from(1 << 23) - 1.0)
        };
        let mut hash = 0_u64;
        let mut note = |numbers: &[Fixed]| {
            for x in numbers {
                hash = (hash.rotate_left(5) ^ x.0.to_bits()).wrapping_mul(0x517c_c1b7_2722_0a95);
            }
        };
        for size in [1, 2, 3, 4, 5, 11, 32, 50, 64] {
            let mut block: Vec<Fixed> = (0..size * size).map(|_| next()).collect();
            for i in 0..size {
                block[i * size + i] += Fixed(size as f64);
            }
            assert_eq!(factor(&mut block, size), Ok(()));
            for i in 0..size {
                note(&block[i * size..=i * size + i]);
            }
            for count in [1, 7, 70] {
                let mut rows: Vec<Fixed> = (0..count * size).map(|_| next()).collect();
                solve(&block, size, &mut rows);
                note(&rows);
                solve_transposed(&block, size, &mut rows);
                note(&rows);
            }
        }
        assert_eq!(hash, 0xd4fa_8c5a_6bfb_6842);
    }

    #[test]
    fn the_first_bad_pivot_is_named() {
        let mut block = [4.0, 0.0, 0.0, 2.0, 1.0, 0.0, 0.0, 0.0, 1.0].map(Fixed);
        assert_eq!(factor(&mut block, 3), Err(1));
        assert_eq!(block[0], Fixed(2.0));
        assert_eq!(factor(&mut [Fixed(1.0), Fixed(0.0), Fixed(f64::NAN), Fixed(1.0)], 2), Err(1));
    }
}
