//! The counts of the buckets of a histogram.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::native::{Cells, NativeBuckets};

/// Counters that share no cache line with those of another histogram.
#[derive(Debug)]
pub(crate) enum BucketCounts {
    Classic(Box<[Line]>),
    /// Counters of cells, of which most histograms use few. Allocated line by line, at the first sample of each.
    Native(Arc<Cells>, Box<[OnceLock<Box<Page>>]>),
}

#[derive(Debug, Default)]
#[repr(align(128))] // Two cache lines, which are fetched together.
pub(crate) struct Line([AtomicU64; COUNTS_PER_LINE]);

type Page = [OnceLock<Box<Line>>; LINES_PER_PAGE];

const COUNTS_PER_LINE: usize = 16;
const LINES_PER_PAGE: usize = 32;

/// The highest count that samples recorded together give a counter. A histogram has fewer than 2^15 counters, so their sum
/// fits in 63 bits, as the differences of counts in protobuf require. Samples recorded one by one do not get there.
const MAX_COUNT: u64 = 1 << 48;

impl BucketCounts {
    pub(crate) fn new(buckets: usize) -> Self {
        Self::Classic((0..buckets.div_ceil(COUNTS_PER_LINE)).map(|_| Line::default()).collect())
    }

    /// Creates the counters of a histogram that has native buckets too.
    pub(crate) fn native(cells: Arc<Cells>) -> Self {
        let pages = cells.len().div_ceil(COUNTS_PER_LINE * LINES_PER_PAGE);
        Self::Native(cells, (0..pages).map(|_| OnceLock::new()).collect())
    }

    /// Counts samples of a value, which is in this classic bucket. Returns their number, which is smaller than `count` where
    /// the counter would exceed [`MAX_COUNT`].
    #[inline]
    pub(crate) fn add(&self, bucket: usize, value: impl FnOnce() -> f64, count: u64) -> u64 {
        let (line, at) = match self {
            Self::Classic(lines) => (lines.get(bucket / COUNTS_PER_LINE), bucket),
            Self::Native(cells, pages) => {
                let cell = cells.of(value(), bucket);
                let line = cell / COUNTS_PER_LINE;
                let page = pages.get(line / LINES_PER_PAGE).map(|page| page.get_or_init(Box::default));
                (page.map(|page| &**page[line % LINES_PER_PAGE].get_or_init(Box::default)), cell)
            }
        };
        match line.map(|line| &line.0[at % COUNTS_PER_LINE]) {
            Some(counter) if count == 1 => {
                counter.fetch_add(1, Ordering::Relaxed);
                1
            }
            Some(counter) => add_many(counter, count),
            None => 0,
        }
    }

    /// Returns the sum of all counts.
    pub(crate) fn total(&self) -> u64 {
        self.lines().map(|(_, line)| line.counts().sum::<u64>()).sum()
    }

    /// Iterates over the lines that are allocated, each with the position of its first counter.
    fn lines(&self) -> impl Iterator<Item = (usize, &Line)> {
        let (lines, pages) = match self {
            Self::Classic(lines) => (&lines[..], &[][..]),
            Self::Native(_, pages) => (&[][..], &pages[..]),
        };
        let pages = pages.iter().enumerate().filter_map(|(n, page)| Some((n * LINES_PER_PAGE, page.get()?)));
        let of_pages = pages.flat_map(|(first, page)| {
            page.iter().enumerate().filter_map(move |(n, line)| Some((first + n, &**line.get()?)))
        });
        lines.iter().enumerate().chain(of_pages).map(|(n, line)| (n * COUNTS_PER_LINE, line))
    }
}

/// Counts samples up to [`MAX_COUNT`]. Returns the number of those that it counted.
fn add_many(counter: &AtomicU64, count: u64) -> u64 {
    let added = |before| count.min(MAX_COUNT.saturating_sub(before));
    let before = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |before| Some(before + added(before)));
    before.map_or(0, added)
}

impl Line {
    fn counts(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|count| count.load(Ordering::Relaxed))
    }
}

/// A histogram at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Snapshot {
    /// One count for each bound, not cumulative, and one for samples above all bounds.
    pub(crate) counts: Vec<u64>,
    pub(crate) sum: f64,
    pub(crate) native: Option<Box<NativeBuckets>>,
}

impl Snapshot {
    /// Creates a histogram without samples.
    pub(crate) fn empty(buckets: usize) -> Self {
        Self { counts: vec![0; buckets], sum: 0.0, native: None }
    }

    /// Adds the samples of counters. Returns their number. The caller adds their sum; it becomes NaN if one of them is.
    pub(crate) fn add_counts(&mut self, counts: &BucketCounts) -> u64 {
        let mut total = 0;
        let BucketCounts::Native(cells, _) = counts else {
            for (first, line) in counts.lines() {
                for (bucket, count) in self.counts.iter_mut().skip(first).zip(line.counts()) {
                    *bucket += count;
                    total += count;
                }
            }
            return total;
        };
        // Each counter is read once, for the buckets of both kinds and the total.
        let counted = counts.lines().flat_map(|(first, line)| (first..).zip(line.counts()));
        let counted = counted.filter(|(_, count)| *count != 0).inspect(|(_, count)| total += count);
        let (native, not_numbers) = cells.split(counted, &mut self.counts);
        if not_numbers != 0 {
            self.sum = f64::NAN;
        }
        match &mut self.native {
            Some(sum) => sum.add(native),
            None => self.native = Some(Box::new(native)),
        }
        total
    }
}

impl std::ops::AddAssign for Snapshot {
    fn add_assign(&mut self, other: Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(sum, count)| *sum += count);
        self.sum += other.sum;
        if let (Some(sum), Some(native)) = (&mut self.native, other.native) {
            sum.add(*native);
        }
    }
}

#[cfg(feature = "otlp")]
impl std::ops::SubAssign<&Self> for Snapshot {
    /// Removes the samples of an earlier reading of the same histogram.
    fn sub_assign(&mut self, earlier: &Self) {
        self.counts.iter_mut().zip(&earlier.counts).for_each(|(count, earlier)| *count -= earlier);
        self.sum -= earlier.sum;
        if let (Some(native), Some(earlier)) = (&mut self.native, &earlier.native) {
            native.subtract(earlier);
        }
    }
}
