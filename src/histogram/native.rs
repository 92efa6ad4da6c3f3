//! The buckets of native histograms, as Prometheus defines them, and the cells in which samples are counted for them.

/// Samples are counted at this schema: eight buckets for each power of two.
const FINEST_SCHEMA: i32 = 3;
const PER_OCTAVE: u64 = 1 << FINEST_SCHEMA;

/// At this schema all values have fewer than 160 buckets.
#[cfg(feature = "pushgateway")]
const COARSEST_SCHEMA: i32 = -4;

/// The largest number of positive and negative buckets of a histogram that is written.
#[cfg(feature = "pushgateway")]
const MAX_BUCKETS: usize = 160;

/// 2^-128, the default of Prometheus' Go client.
const ZERO_THRESHOLD: f64 = f64::from_bits((EXPONENT_OF_ONE - 128) << MANTISSA_BITS);

const MANTISSA_BITS: u32 = f64::MANTISSA_DIGITS - 1;
const MANTISSA: u64 = (1 << MANTISSA_BITS) - 1;
const EXPONENT_OF_ONE: u64 = 1_023;

/// The mantissas of the bounds from a power of two to the next. Prometheus has these floats too, of which three are not the
/// nearest ones.
#[allow(clippy::approx_constant)]
const BOUNDS: [u64; PER_OCTAVE as usize] = [
    mantissa(0.5),
    mantissa(0.545_253_866_332_628_8),
    mantissa(0.594_603_557_501_360_5),
    mantissa(0.648_419_777_325_504_8),
    mantissa(0.707_106_781_186_547_5),
    mantissa(0.771_105_412_703_970_4),
    mantissa(0.840_896_415_253_714_4),
    mantissa(0.917_004_043_204_671_1),
];

const fn mantissa(value: f64) -> u64 {
    value.to_bits() & MANTISSA
}

/// The number of buckets above the zero bucket. The last one has the infinite samples alone.
const PER_SIDE: u64 = PER_OCTAVE * (2_047 - EXPONENT_OF_ONE + 128) + 1;

/// The index of the lowest bucket above the zero bucket, less one.
const INDEX_OF_ZERO: i64 = -128 * PER_OCTAVE as i64;

/// The buckets of a native histogram. The one of an index has the samples up to `2^(index / 2^schema)` that are above the
/// bound of the index before. The text formats do not have them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NativeBuckets {
    pub(crate) schema: i32,
    /// Samples whose absolute value is not above it count as zeros.
    pub(crate) zero_threshold: f64,
    pub(crate) zero_count: u64,
    /// Index and count, by index.
    pub(crate) positive: Vec<(i32, u64)>,
    /// Index and count of the negated samples.
    pub(crate) negative: Vec<(i32, u64)>,
}

impl Default for NativeBuckets {
    fn default() -> Self {
        Self {
            schema: FINEST_SCHEMA,
            zero_threshold: ZERO_THRESHOLD,
            zero_count: 0,
            positive: Vec::new(),
            negative: Vec::new(),
        }
    }
}

impl NativeBuckets {
    /// Merges neighbours until there are at most 160 buckets, positive and negative ones.
    #[cfg(feature = "pushgateway")]
    #[must_use]
    pub(crate) fn limited(self) -> Self {
        self.limited_by(<[_]>::len)
    }

    /// Merges neighbours until there are at most 160 buckets, with the empty ones between others. OTLP has those too.
    #[cfg(feature = "otlp")]
    #[must_use]
    pub(crate) fn limited_with_gaps(self) -> Self {
        self.limited_by(|buckets| match buckets {
            [(first, _), .., (last, _)] => first.abs_diff(*last) as usize + 1,
            _ => buckets.len(),
        })
    }

    /// Halves the resolution until the positive and the negative buckets are at most 160 by this measure.
    #[cfg(feature = "pushgateway")]
    fn limited_by(mut self, len: impl Fn(&[(i32, u64)]) -> usize) -> Self {
        while len(&self.positive) + len(&self.negative) > MAX_BUCKETS && self.schema > COARSEST_SCHEMA {
            self.halve_resolution();
        }
        self
    }

    /// Removes the samples of an earlier reading of the same histogram, at the same schema.
    #[cfg(feature = "otlp")]
    pub(super) fn subtract(&mut self, earlier: &Self) {
        self.zero_count -= earlier.zero_count;
        let sides = [(&mut self.positive, &earlier.positive), (&mut self.negative, &earlier.negative)];
        for (buckets, earlier) in sides {
            // A later reading has all buckets of an earlier one.
            let mut earlier = earlier.iter().peekable();
            buckets.retain_mut(|(index, count)| {
                *count -= earlier.next_if(|(other, _)| other == index).map_or(0, |(_, count)| *count);
                *count > 0
            });
        }
    }

    /// Adds the samples of a histogram of this crate, at the coarser of the two schemas.
    pub(crate) fn add(&mut self, mut other: Self) {
        while self.schema > other.schema {
            self.halve_resolution();
        }
        while other.schema > self.schema {
            other.halve_resolution();
        }
        self.zero_count += other.zero_count;
        for (buckets, more) in [(&mut self.positive, other.positive), (&mut self.negative, other.negative)] {
            buckets.extend(more);
            buckets.sort_unstable_by_key(|(index, _)| *index);
            merge_equal(buckets);
        }
    }

    fn halve_resolution(&mut self) {
        self.schema -= 1;
        for buckets in [&mut self.positive, &mut self.negative] {
            // A bucket becomes part of the one with the next even bound.
            buckets.iter_mut().for_each(|(index, _)| *index = (*index >> 1) + (*index & 1));
            merge_equal(buckets);
        }
    }
}

/// Sums neighbours of one index.
fn merge_equal(buckets: &mut Vec<(i32, u64)>) {
    buckets.dedup_by(|next, kept| {
        let is_same = next.0 == kept.0;
        kept.1 += if is_same { next.1 } else { 0 };
        is_same
    });
}

/// A cell is the part of a classic bucket that is within one native bucket. A sample is counted in one cell, so the two
/// kinds of buckets and the count agree in every reading.
///
/// The number of a cell is the number of bounds of either kind below its samples.
#[derive(Debug)]
pub(crate) struct Cells {
    /// The lowest rank, and its native bucket.
    lowest: (u64, Native),
    ranks: u64,
    /// The last cell that is not above each bound of the classic buckets.
    last_within: Box<[usize]>,
}

/// A native bucket, or none.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Native {
    Negative(i32),
    Zero,
    Positive(i32),
    NotANumber,
}

impl Cells {
    /// The cells of all values, NaN included. `bounds` has those of the classic buckets, ascending.
    #[cfg(feature = "pushgateway")]
    pub(crate) fn new(bounds: &[f64]) -> Self {
        Self::from_rank((0, native_of(0)), rank(f64::NAN), bounds)
    }

    /// The cells of zero and of the values from `lowest` to `highest`, which are positive.
    pub(crate) fn of_zero_and(lowest: f64, highest: f64, bounds: &[f64]) -> Self {
        Self::from_rank((rank(lowest) - 1, Native::Zero), rank(highest), bounds)
    }

    fn from_rank(lowest: (u64, Native), highest: u64, bounds: &[f64]) -> Self {
        let above = |bound: f64| rank(bound).saturating_sub(lowest.0) as usize;
        let last_within = bounds.iter().enumerate().map(|(n, bound)| above(*bound) + n).collect();
        Self { lowest, ranks: highest - lowest.0 + 1, last_within }
    }

    /// Returns the number of cells.
    pub(crate) fn len(&self) -> usize {
        self.ranks as usize + self.last_within.len()
    }

    /// Returns the cell of a value in this classic bucket.
    #[inline]
    pub(crate) fn of(&self, value: f64, bucket: usize) -> usize {
        rank(value).saturating_sub(self.lowest.0) as usize + bucket
    }

    /// Adds the counts of cells, in ascending order, to those of the classic buckets. Returns the native buckets, and the
    /// number of samples that are no numbers and have none.
    pub(super) fn split(
        &self,
        cells: impl IntoIterator<Item = (usize, u64)>,
        classic: &mut [u64],
    ) -> (NativeBuckets, u64) {
        let (mut native, mut not_numbers, mut bucket) = (NativeBuckets::default(), 0, 0);
        for (cell, count) in cells {
            while self.last_within.get(bucket).is_some_and(|last| *last < cell) {
                bucket += 1;
            }
            if let Some(classic) = classic.get_mut(bucket) {
                *classic += count;
            }
            let native_bucket = match (cell - bucket) as u64 {
                0 => self.lowest.1,
                above => native_of(self.lowest.0 + above),
            };
            match native_bucket {
                // Ranks ascend, and the indexes of negative samples descend.
                Native::Negative(index) => native.negative.push((index, count)),
                Native::Zero => native.zero_count += count,
                Native::Positive(index) => native.positive.push((index, count)),
                Native::NotANumber => not_numbers += count,
            }
        }
        native.negative.reverse();
        merge_equal(&mut native.negative);
        merge_equal(&mut native.positive);
        (native, not_numbers)
    }
}

/// Returns the number of native buckets below the one of a value. NaN is above all.
#[inline]
fn rank(value: f64) -> u64 {
    let magnitude = value.to_bits() & !(1 << 63);
    let steps = if magnitude <= ZERO_THRESHOLD.to_bits() {
        0
    } else {
        let (exponent, mantissa) = (magnitude >> MANTISSA_BITS, magnitude & MANTISSA);
        if exponent == 2_047 {
            if mantissa != 0 {
                return 2 * PER_SIDE + 1;
            }
            PER_SIDE
        } else {
            // Upper bounds are inclusive.
            let above = BOUNDS.iter().map(|bound| u64::from(*bound < mantissa)).sum::<u64>();
            PER_OCTAVE * (exponent + 128 - EXPONENT_OF_ONE) + above
        }
    };
    if value.is_sign_negative() { PER_SIDE - steps } else { PER_SIDE + steps }
}

/// The inverse of [`rank`].
fn native_of(rank: u64) -> Native {
    let index = |steps: u64| (INDEX_OF_ZERO + steps.cast_signed()) as i32;
    match rank {
        0..PER_SIDE => Native::Negative(index(PER_SIDE - rank)),
        PER_SIDE => Native::Zero,
        _ if rank <= 2 * PER_SIDE => Native::Positive(index(rank - PER_SIDE)),
        _ => Native::NotANumber,
    }
}
