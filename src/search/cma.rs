//! CMA-ES: the evolution strategy with covariance matrix adaptation (Hansen, arXiv 1604.00772), by asking and telling.
//!
//! Its whole course follows from seed, start and what it was told, so that an interrupted search is told once more what
//! is known and goes on.

use super::linear::eigen;

/// Digits behind the point of what is asked for.
const DIGITS: f64 = 1e4;

/// Minimises a function of `n` numbers within bounds.
#[derive(Clone, Debug)]
pub(super) struct Cma {
    bounds: (f64, f64),
    mean: Vec<f64>,
    sigma: f64,
    covariance: Vec<Vec<f64>>,
    /// Evolution paths of the step size and of the covariance.
    paths: [Vec<f64>; 2],
    generation: u64,
    random: Random,
    /// Eigenvectors as columns, and square roots of eigenvalues.
    axes: (Vec<Vec<f64>>, Vec<f64>),
}

/// Weights and rates, which depend on the number of dimensions alone.
struct Rates {
    weights: Vec<f64>,
    effective: f64,
    step: f64,
    damping: f64,
    path: f64,
    one: f64,
    many: f64,
    /// Expected length of a vector of normal numbers.
    length: f64,
}

impl Cma {
    /// Starts at `start`, within bounds.
    pub(super) fn new(start: &[f64], bounds: (f64, f64), seed: u64) -> Self {
        let n = start.len();
        let identity = |i: usize| (0..n).map(|j| f64::from(u8::from(i == j))).collect();
        let covariance: Vec<Vec<f64>> = (0..n).map(identity).collect();
        Self {
            bounds,
            mean: start.to_vec(),
            sigma: 0.25 * (bounds.1 - bounds.0),
            axes: (covariance.clone(), vec![1.0; n]),
            covariance,
            paths: [vec![0.0; n], vec![0.0; n]],
            generation: 0,
            random: Random(seed),
        }
    }

    /// Number of candidates in a generation.
    fn generation_len(&self) -> usize {
        4 + (3.0 * (self.mean.len() as f64).ln()).floor() as usize
    }

    /// The candidates of the next generation. The first of the first one is the start itself.
    pub(super) fn ask(&mut self) -> Vec<Vec<f64>> {
        let first = self.generation == 0;
        (0..self.generation_len())
            .map(|k| if first && k == 0 { self.rounded(&self.mean) } else { self.sample() })
            .collect()
    }

    /// A sample within bounds: another one if it lies outside, and the nearest point within after many.
    fn sample(&mut self) -> Vec<f64> {
        let (low, high) = self.bounds;
        let mut x = self.mean.clone();
        for _ in 0..100 {
            let z: Vec<f64> = self.mean.iter().map(|_| self.random.normal()).collect();
            let scaled: Vec<f64> = z.iter().zip(&self.axes.1).map(|(z, d)| z * d).collect();
            let step = times(&self.axes.0, &scaled);
            x = self.mean.iter().zip(&step).map(|(m, y)| m + self.sigma * y).collect();
            if x.iter().all(|x| (low..=high).contains(x)) {
                break;
            }
        }
        self.rounded(&x)
    }

    fn rounded(&self, x: &[f64]) -> Vec<f64> {
        let (low, high) = self.bounds;
        x.iter().map(|x| ((x * DIGITS).round() / DIGITS).clamp(low, high)).collect()
    }

    /// Takes the candidates of a generation in their order, the best first.
    pub(super) fn tell(&mut self, ranked: &[Vec<f64>]) {
        let (n, rates) = (self.mean.len(), self.rates());
        let old = self.mean.clone();
        let parents = &ranked[..rates.weights.len().min(ranked.len())];
        let steps: Vec<Vec<f64>> = (parents.iter())
            .map(|x| x.iter().zip(&old).map(|(x, m)| (x - m) / self.sigma).collect())
            .collect();
        let mut step = vec![0.0; n];
        for (w, y) in rates.weights.iter().zip(&steps) {
            step.iter_mut().zip(y).for_each(|(sum, y)| *sum += w * y);
        }
        self.mean = old.iter().zip(&step).map(|(m, y)| m + self.sigma * y).collect();
        self.generation += 1;
        // The step in a frame in which the distribution is round.
        let (vectors, roots) = &self.axes;
        let turned: Vec<f64> = (0..n)
            .map(|j| (0..n).map(|i| vectors[i][j] * step[i]).sum::<f64>() / roots[j].max(1e-12))
            .collect();
        let round = times(vectors, &turned);
        let [of_step, of_covariance] = &mut self.paths;
        let gain = (rates.step * (2.0 - rates.step) * rates.effective).sqrt();
        for (p, y) in of_step.iter_mut().zip(&round) {
            *p = (1.0 - rates.step) * *p + gain * y;
        }
        let length = of_step.iter().map(|p| p * p).sum::<f64>().sqrt();
        let expected = (1.0 - (1.0 - rates.step).powf(2.0 * self.generation as f64)).sqrt();
        let calm = length / expected.max(1e-12) < (1.4 + 2.0 / (n as f64 + 1.0)) * rates.length;
        let gain = (rates.path * (2.0 - rates.path) * rates.effective).sqrt();
        for (p, y) in of_covariance.iter_mut().zip(&step) {
            *p = (1.0 - rates.path) * *p + if calm { gain * y } else { 0.0 };
        }
        let lost = if calm { 0.0 } else { rates.path * (2.0 - rates.path) };
        for i in 0..n {
            for j in 0..n {
                let many: f64 =
                    rates.weights.iter().zip(&steps).map(|(w, y)| w * y[i] * y[j]).sum();
                let kept = 1.0 - rates.one - rates.many + rates.one * lost;
                let one = of_covariance[i] * of_covariance[j];
                self.covariance[i][j] =
                    kept * self.covariance[i][j] + rates.one * one + rates.many * many;
            }
        }
        self.sigma *= ((rates.step / rates.damping) * (length / rates.length - 1.0)).min(1.0).exp();
        self.sigma = self.sigma.clamp(1e-6, self.bounds.1 - self.bounds.0);
        let (vectors, values) = eigen(&self.covariance);
        self.axes = (vectors, values.iter().map(|value| value.max(1e-20).sqrt()).collect());
    }

    fn rates(&self) -> Rates {
        let n = self.mean.len() as f64;
        let parents = self.generation_len() / 2;
        let half = f64::midpoint(self.generation_len() as f64, 1.0);
        let raw: Vec<f64> = (1..=parents).map(|i| half.ln() - (i as f64).ln()).collect();
        let sum: f64 = raw.iter().sum();
        let weights: Vec<f64> = raw.iter().map(|w| w / sum).collect();
        let effective = 1.0 / weights.iter().map(|w| w * w).sum::<f64>();
        let step = (effective + 2.0) / (n + effective + 5.0);
        let one = 2.0 / ((n + 1.3).powi(2) + effective);
        let many = 2.0 * (effective - 2.0 + 1.0 / effective) / ((n + 2.0).powi(2) + effective);
        Rates {
            step,
            damping: 1.0 + 2.0 * (((effective - 1.0) / (n + 1.0)).sqrt() - 1.0).max(0.0) + step,
            path: (4.0 + effective / n) / (n + 4.0 + 2.0 * effective / n),
            one,
            many: many.min(1.0 - one).max(0.0),
            length: n.sqrt() * (1.0 - 1.0 / (4.0 * n) + 1.0 / (21.0 * n * n)),
            weights,
            effective,
        }
    }
}

fn times(matrix: &[Vec<f64>], x: &[f64]) -> Vec<f64> {
    matrix.iter().map(|row| row.iter().zip(x).map(|(a, x)| a * x).sum()).collect()
}

/// Random numbers by SplitMix64.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In -1 to 1.
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// Normally distributed, by the polar method.
    fn normal(&mut self) -> f64 {
        loop {
            let (x, y) = (self.uniform(), self.uniform());
            let square = x * x + y * y;
            if square > 0.0 && square < 1.0 {
                return x * (-2.0 * square.ln() / square).sqrt();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The least value found, and where.
    fn least(
        f: impl Fn(&[f64]) -> f64,
        start: &[f64],
        bounds: (f64, f64),
        generations: usize,
    ) -> (f64, Vec<f64>) {
        let mut cma = Cma::new(start, bounds, 7);
        let mut best = (f64::INFINITY, Vec::new());
        for _ in 0..generations {
            let mut all = cma.ask();
            assert!(all.iter().flatten().all(|x| (bounds.0..=bounds.1).contains(x)));
            all.sort_by(|a, b| f(a).total_cmp(&f(b)));
            if f(&all[0]) < best.0 {
                best = (f(&all[0]), all[0].clone());
            }
            cma.tell(&all);
        }
        best
    }

    #[test]
    fn it_finds_the_bottom_of_a_sphere_and_of_a_bent_valley() {
        let sphere =
            |x: &[f64]| x.iter().zip([1.2, 0.9, 2.0, 0.6]).map(|(x, c)| (x - c).powi(2)).sum();
        let (value, at) = least(sphere, &[1.0; 4], (0.5, 3.0), 60);
        assert!(value < 1e-6, "{value} {at:?}");
        let rosenbrock = |x: &[f64]| 100.0 * (x[1] - x[0] * x[0]).powi(2) + (1.0 - x[0]).powi(2);
        let (value, at) = least(rosenbrock, &[-1.0, 2.0], (-3.0, 3.0), 150);
        assert!(value < 1e-5, "{value} {at:?}");
        let (value, at) = least(|x| (x[0] - 1.1).abs(), &[1.0], (0.8, 1.3), 20);
        assert!(value < 1e-3, "{value} {at:?}");
    }

    #[test]
    fn a_bottom_at_the_border_is_found() {
        let slope = |x: &[f64]| -x.iter().sum::<f64>();
        let (_, at) = least(slope, &[1.0; 3], (0.8, 1.3), 40);
        assert!(at.iter().all(|x| *x > 1.29), "{at:?}");
    }

    #[test]
    fn its_course_follows_from_the_seed_and_begins_at_the_start() {
        let run = |seed| {
            let mut cma = Cma::new(&[1.0, 1.1], (0.8, 1.3), seed);
            let mut all = Vec::new();
            for _ in 0..5 {
                let mut asked = cma.ask();
                all.extend(asked.clone());
                asked.sort_by(|a, b| a[0].total_cmp(&b[0]));
                cma.tell(&asked);
            }
            all
        };
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
        assert_eq!(run(3)[0], [1.0, 1.1]);
    }
}
