//! The names of the files in a spool: `NUMBER-GROUP-PID-RANDOM.spool`, hidden and with another extension while a file is
//! being written.
//!
//! The number is the order of the payloads: the time in nanoseconds, or one more than the highest number in the directory
//! if that is larger. So a clock that is set back puts no payload before an earlier one. Format 1 had the time alone. The
//! group is a hash: it selects the payloads of one group without reading all files.

use std::hash::{BuildHasher, RandomState};

use super::format::checksum;
use crate::delivery::pushgateway::Grouping;
use crate::unix_time;

/// Extension of payloads.
pub(super) const EXTENSION: &str = "spool";
/// Extension of incomplete files.
pub(super) const CORRUPT: &str = "torn";
/// Extension of payloads that the gateway refused.
pub(super) const REFUSED: &str = "refused";
/// Extension of files that are being written.
pub(super) const TEMPORARY: &str = "tmp";

const DIGITS: usize = 20;

/// A parsed file name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileName<'a> {
    pub(super) number: u64,
    pub(super) group: &'a str,
    pub(super) extension: &'a str,
    /// The name without its extension. Stems sort in the order of the payloads.
    pub(super) stem: &'a str,
}

impl<'a> FileName<'a> {
    /// Parses a name. `None` if it is not a name of this crate.
    pub(super) fn parse(name: &'a str) -> Option<Self> {
        let (stem, extension) = name.strip_prefix('.').unwrap_or(name).rsplit_once('.')?;
        let (digits, rest) = stem.split_at_checked(DIGITS)?;
        let group = rest.strip_prefix('-')?.split('-').next()?;
        let is_valid = digits.bytes().all(|byte| byte.is_ascii_digit())
            && matches!(extension, EXTENSION | CORRUPT | REFUSED | TEMPORARY);
        is_valid.then_some(Self { number: digits.parse().unwrap_or(u64::MAX), group, extension, stem })
    }
}

/// Returns the stem of a new file after all of these files. No other process returns the same stem.
pub(super) fn next_stem<'a>(names: impl IntoIterator<Item = &'a str>, group: &str) -> String {
    let highest = names.into_iter().filter_map(FileName::parse).map(|name| name.number).max().unwrap_or(0);
    let now = u64::try_from(unix_time::now().as_nanos()).unwrap_or(0);
    let number = now.max(highest.saturating_add(1));
    // Two containers that share a directory may have the same process id.
    let (id, random) = (std::process::id(), RandomState::new().hash_one(number));
    format!("{number:020}-{group}-{id}-{random:016x}")
}

/// Returns the hash of a group, which does not depend on the order of its labels.
pub(super) fn group_hash(group: &Grouping) -> String {
    let identity: Vec<_> = group.identity().into_iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    format!("{:08x}", checksum(identity.join(",").as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_formats_are_parsed() {
        let name = FileName::parse(".01764194109000000000-00c0ffee-17-3.tmp").unwrap();
        assert_eq!((name.number, name.group, name.extension), (1_764_194_109_000_000_000, "00c0ffee", TEMPORARY));
        let stem = next_stem([], "00c0ffee");
        assert_eq!(FileName::parse(&format!("{stem}.spool")).unwrap().group, "00c0ffee");
        for foreign in ["0.spool", "notes.txt", "0176419410900000000-a-1-1.spool", "01764194109000000000-a-1-1.txt", ""]
        {
            assert_eq!(FileName::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn numbers_increase_when_the_clock_goes_back() {
        let future = "04070908800000000000-00c0ffee-17-3.spool";
        let first = next_stem([future, "01764194109000000000-00c0ffee-17-3.spool"], "00000000");
        assert_eq!(&first[..20], "04070908800000000001");
        let second = next_stem([future, &format!(".{first}.tmp")], "00c0ffee");
        assert_eq!(&second[..20], "04070908800000000002");
    }

    #[test]
    fn hash_does_not_depend_on_the_order_of_labels() {
        let group = |labels: &[(&str, &str)]| {
            let mut group = Grouping::new("a").unwrap();
            labels.iter().for_each(|(name, value)| group.add(*name, *value).unwrap());
            group_hash(&group)
        };
        assert_eq!(group(&[("x", "1"), ("y", "2")]), group(&[("y", "2"), ("x", "1")]));
        assert_ne!(group(&[("x", "1")]), group(&[]));
        // These are two groups on a gateway.
        assert_ne!(group(&[("x", "")]), group(&[]));
    }
}
