//! A Pushgateway, and the node_exporters of hosts with text files: what a scrape shows at each moment.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::series::SeriesStore;

pub(crate) type Labels = BTreeMap<String, String>;

/// Metric families by name: each with its series and values.
pub(crate) type Families = BTreeMap<&'static str, Rc<Vec<(String, f64)>>>;

/// Something that changes what is scraped.
#[derive(Clone)]
pub(crate) enum Event {
    /// A POST to a group: families of the same name are replaced.
    Push {
        group: Labels,
        families: Families,
    },
    /// A POST that the gateway refuses.
    RefusedPush {
        group: Labels,
    },
    /// Deletes the groups that have all of these labels.
    Delete(Labels),
    /// Ends the gateway's process; pushes fail until `GatewayUp`.
    GatewayDown,
    GatewayUp(Restart),
    /// Keeps the present state for a later restart.
    Snapshot,
    /// Replaces the text file of a job on a host.
    TextFile {
        host: String,
        file: String,
        families: Families,
    },
    PrometheusDown,
    PrometheusUp,
    /// Whether scrapes of the gateway fail though it runs.
    ScrapesFail(bool),
}

/// The state with which a gateway starts.
#[derive(Clone, Copy)]
pub(crate) enum Restart {
    Kept,
    Empty,
    /// That of the last `Snapshot`.
    Older,
}

#[derive(Clone, Default)]
struct Group {
    families: Families,
    push_time: i64,
    push_failure_time: i64,
}

#[derive(Default)]
pub(crate) struct Targets {
    pub(crate) has_gateway: bool,
    groups: BTreeMap<Labels, Group>,
    snapshot: BTreeMap<Labels, Group>,
    gateway_start: i64,
    /// How far the gateway's clock is ahead of Prometheus'.
    pub(crate) gateway_clock: i64,
    /// By host and file, with the time at which it was written.
    text_files: BTreeMap<(String, String), (i64, Families)>,
    gateway_down: bool,
    prometheus_down: bool,
    scrapes_fail: bool,
    /// Groups and text files that may differ from the last scrape.
    changed: BTreeSet<String>,
    pub(crate) all_changed: bool,
}

impl Targets {
    pub(crate) fn apply(&mut self, at: i64, event: Event) {
        match &event {
            Event::Push { group, .. } | Event::RefusedPush { group } => _ = self.changed.insert(series("", group)),
            Event::TextFile { host, file, .. } => self.changed.extend([format!("{host}{file}"), host.clone()]),
            _ => self.all_changed = true,
        }
        match event {
            Event::Push { group, families } if !self.gateway_down => {
                let group = self.groups.entry(group).or_default();
                group.families.extend(families);
                group.push_time = at + self.gateway_clock;
            }
            Event::RefusedPush { group } if !self.gateway_down => {
                self.groups.entry(group).or_default().push_failure_time = at + self.gateway_clock;
            }
            Event::Push { .. } | Event::RefusedPush { .. } => {}
            Event::Delete(labels) => {
                self.groups.retain(|group, _| !labels.iter().all(|(name, value)| group.get(name) == Some(value)));
            }
            Event::GatewayDown => self.gateway_down = true,
            Event::GatewayUp(restart) => {
                self.gateway_down = false;
                self.gateway_start = at + self.gateway_clock;
                match restart {
                    Restart::Kept => {}
                    Restart::Empty => self.groups.clear(),
                    Restart::Older => self.groups = self.snapshot.clone(),
                }
            }
            Event::Snapshot => self.snapshot = self.groups.clone(),
            Event::TextFile { host, file, families } => {
                self.text_files.insert((host, file), (at, families));
            }
            Event::PrometheusDown => self.prometheus_down = true,
            Event::PrometheusUp => self.prometheus_down = false,
            Event::ScrapesFail(fail) => self.scrapes_fail = fail,
        }
    }

    /// Stores what Prometheus scrapes now.
    pub(crate) fn scrape(&mut self, tick: usize, store: &mut SeriesStore) {
        if self.prometheus_down {
            store.skip(tick);
            self.all_changed = true;
            return;
        }
        let (all, changed) = (std::mem::take(&mut self.all_changed), std::mem::take(&mut self.changed));
        let mut gone: BTreeSet<String> = if all { store.sources().into_iter().collect() } else { BTreeSet::new() };
        let mut scrape = |source: &str, samples: &dyn Fn() -> Vec<(String, f64)>| {
            gone.remove(source);
            if all || changed.contains(source) {
                store.scrape(source, tick, &samples());
            }
        };
        scrape("prometheus", &|| vec![("prometheus_is_up".to_owned(), 1.0)]);
        let is_up = !self.gateway_down && !self.scrapes_fail;
        if self.has_gateway {
            scrape("gateway", &|| {
                let up = (r#"up{instance="localhost:9091",job="pushgateway"}"#.to_owned(), f64::from(u8::from(is_up)));
                let start = r#"process_start_time_seconds{instance="localhost:9091",job="pushgateway"}"#.to_owned();
                [up].into_iter().chain(is_up.then_some((start, self.gateway_start as f64))).collect()
            });
            for (labels, group) in self.groups.iter().filter(|_| is_up) {
                scrape(&series("", labels), &|| {
                    let push_times = [
                        (series("push_time_seconds", labels), group.push_time as f64),
                        (series("push_failure_time_seconds", labels), group.push_failure_time as f64),
                    ];
                    push_times.into_iter().chain(group.families.values().flat_map(|f| f.iter().cloned())).collect()
                });
            }
        }
        for ((host, file), (at, families)) in &self.text_files {
            scrape(&format!("{host}{file}"), &|| {
                let labels = format!("instance=\"{host}\",job=\"node\"");
                let mtime = format!("node_textfile_mtime_seconds{{file=\"{file}\",{labels}}}");
                [(mtime, *at as f64)].into_iter().chain(families.values().flat_map(|f| f.iter().cloned())).collect()
            });
            scrape(host, &|| vec![(format!("up{{instance=\"{host}\",job=\"node\"}}"), 1.0)]);
        }
        for source in gone {
            store.scrape(&source, tick, &[]);
        }
    }
}

/// Writes a series; labels with an empty value are left out, as Prometheus does.
pub(crate) fn series(name: &str, labels: &Labels) -> String {
    let labels: Vec<_> =
        labels.iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| format!("{name}={value:?}")).collect();
    format!("{name}{{{}}}", labels.join(","))
}
