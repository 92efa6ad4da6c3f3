//! CPU and memory of this process.
//!
//! CPU comes from the process's CPU clock, which counts in nanoseconds; the ticks of `/proc` count in hundredths of a
//! second, too coarse for a job that lives for one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::layer::StageTracker;
use crate::schema;

/// Default interval between two samples: 5 seconds. `MetricsLayerBuilder::with_resource_usage` changes it.
pub const DEFAULT_RESOURCE_INTERVAL: Duration = Duration::from_secs(5);

/// The resources of the process, and the label `node` of their metrics.
pub(crate) struct Resources {
    meter: ResourceSampler,
    node: String,
    pub(super) sampled: AtomicBool,
}

impl Resources {
    pub(crate) fn new(node: String) -> Self {
        Self { meter: ResourceSampler::new(), node, sampled: AtomicBool::new(false) }
    }

    /// Sets the gauges. They have no value before the first sample: a zero would not be a measurement.
    pub(super) fn sample(&self, stages: &StageTracker) {
        self.sampled.store(true, Ordering::Relaxed);
        let sample = self.meter.sample();
        let set = |resource, value| stages.set_gauge(&schema::RESOURCE_USAGE, &[resource, &self.node], value);
        if let Some(cores) = sample.cores {
            set("cpu", cores);
        }
        if let Some(bytes) = sample.resident_bytes {
            set("mem", bytes as f64);
        }
    }

    pub(super) fn end(&self, stages: &StageTracker) {
        self.sample(stages);
        if let Some(used) = self.meter.cpu_used() {
            stages.set_gauge(&schema::RUN_CPU, &[], used.as_secs_f64());
        }
        if let Some(bytes) = self.meter.peak_bytes() {
            stages.set_gauge(&schema::RUN_PEAK_MEMORY, &[], bytes as f64);
        }
    }
}

/// Samples the resources of this process, beginning with its creation.
pub(crate) struct ResourceSampler {
    start: Instant,
    cpu_at_start: Duration,
    last: Mutex<Last>,
}

struct Last {
    at: Instant,
    cpu: Duration,
    /// Whether this is a sample; the first entry is the creation of the sampler.
    is_sample: bool,
}

/// Shortest time over which CPU use is computed.
const SHORTEST_WINDOW: Duration = Duration::from_millis(100);

/// The resources at one moment. A value that this system does not report is `None`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Average number of cores in use since the previous sample. `None` if that sample is too recent; a first sample that is
    /// too recent counts from the creation.
    pub(crate) cores: Option<f64>,
    /// Resident memory.
    pub(crate) resident_bytes: Option<u64>,
}

impl ResourceSampler {
    pub(crate) fn new() -> Self {
        Self::starting(cpu_time().unwrap_or_default())
    }

    /// `cpu`: the CPU time now.
    fn starting(cpu: Duration) -> Self {
        let start = Instant::now();
        Self { start, cpu_at_start: cpu, last: Mutex::new(Last { at: start, cpu, is_sample: false }) }
    }

    pub(crate) fn sample(&self) -> Sample {
        Sample { cores: self.cores(), resident_bytes: resident_bytes() }
    }

    fn cores(&self) -> Option<f64> {
        self.cores_at(Instant::now(), cpu_time()?)
    }

    /// `cpu`: the CPU time at that moment.
    fn cores_at(&self, now: Instant, cpu: Duration) -> Option<f64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = now.saturating_duration_since(last.at);
        if elapsed.is_zero() {
            return None;
        }
        if last.is_sample && elapsed < SHORTEST_WINDOW {
            // A previous sample of the first moments alone is replaced by the time since the creation.
            let is_of_start = last.at.saturating_duration_since(self.start) < SHORTEST_WINDOW;
            let all = now.saturating_duration_since(self.start);
            let used = cpu.saturating_sub(self.cpu_at_start);
            return is_of_start.then(|| used.as_secs_f64() / all.as_secs_f64());
        }
        let used = cpu.saturating_sub(last.cpu);
        *last = Last { at: now, cpu, is_sample: true };
        Some(used.as_secs_f64() / elapsed.as_secs_f64())
    }

    /// Returns the CPU time, user and system, since the creation.
    pub(crate) fn cpu_used(&self) -> Option<Duration> {
        Some(cpu_time()?.saturating_sub(self.cpu_at_start))
    }

    /// Returns the largest resident memory so far, in bytes.
    pub(crate) fn peak_bytes(&self) -> Option<u64> {
        peak_bytes()
    }
}

#[cfg(target_os = "linux")]
fn cpu_time() -> Option<Duration> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
}

#[cfg(target_os = "linux")]
fn resident_bytes() -> Option<u64> {
    let pages = procfs::process::Process::myself().and_then(|process| process.statm()).ok()?.resident;
    Some(pages * procfs::page_size())
}

#[cfg(target_os = "linux")]
fn peak_bytes() -> Option<u64> {
    // `ru_maxrss` would start with the size of the parent process.
    Some(procfs::process::Process::myself().and_then(|process| process.status()).ok()?.vmhwm? * 1024)
}

#[cfg(not(target_os = "linux"))]
fn cpu_time() -> Option<Duration> {
    None
}

#[cfg(not(target_os = "linux"))]
fn resident_bytes() -> Option<u64> {
    None
}

#[cfg(not(target_os = "linux"))]
fn peak_bytes() -> Option<u64> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::hint::black_box;

    #[test]
    fn a_busy_thread_is_about_one_core() {
        let meter = ResourceSampler::new();
        let begin = Instant::now();
        let before = cpu_time().unwrap();
        while cpu_time().unwrap() - before < Duration::from_millis(100) {
            black_box(begin);
        }
        let elapsed = begin.elapsed().as_secs_f64();
        let cores = meter.sample().cores.unwrap();
        // Other tests run in this process meanwhile: more is possible, less is not.
        assert!(cores >= 0.099 / elapsed, "{cores} cores in {elapsed} s");
        assert!(meter.cpu_used().unwrap() >= Duration::from_millis(100));
    }

    #[test]
    fn a_short_job_is_told_by_all_of_it() {
        let meter = ResourceSampler::starting(Duration::ZERO);
        let after = |millis, cpu_millis| {
            let cores = meter.cores_at(meter.start + Duration::from_millis(millis), Duration::from_millis(cpu_millis));
            cores.map(|cores| (cores * 1e3).round() / 1e3)
        };
        assert_eq!(after(1, 1), Some(1.0), "the first sample");
        assert_eq!(after(90, 9), Some(0.1), "all of it, since the first was of a moment");
        assert_eq!(after(1_001, 501), Some(0.5), "since the first");
        assert_eq!(after(1_050, 550), None, "a moment after another");
        assert_eq!(after(2_001, 751), Some(0.25));
    }

    #[test]
    fn memory_follows_what_is_allocated_and_the_peak_stays() {
        let meter = ResourceSampler::new();
        let before = meter.sample().resident_bytes.unwrap();
        let block = black_box(vec![1_u8; 64 << 20]);
        let with = meter.sample().resident_bytes.unwrap();
        assert!(with >= before + (48 << 20), "{before} {with}");
        drop(block);
        assert!(meter.peak_bytes().unwrap() >= before + (48 << 20));
    }
}
