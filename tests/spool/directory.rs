//! A spool directory as seen from outside the crate.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

pub(crate) use super::support::await_true;

/// Names of all files, sorted.
pub(crate) fn names(spool: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(spool) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Waiting payloads, oldest first.
pub(crate) fn payloads(spool: &Path) -> Vec<PathBuf> {
    names(spool).into_iter().filter(|name| name.ends_with(".spool")).map(|name| spool.join(name)).collect()
}

/// The only waiting payload.
#[track_caller]
pub(crate) fn only_payload(spool: &Path) -> PathBuf {
    let mut payloads = payloads(spool);
    assert_eq!(payloads.len(), 1, "{:?}", names(spool));
    payloads.remove(0)
}

/// Returns group path and exposition of a payload.
#[track_caller]
pub(crate) fn content(payload: &Path) -> (String, String) {
    let text = fs::read_to_string(payload).unwrap();
    let (head, exposition) = text.split_once("\n\n").unwrap();
    let group = head.lines().find_map(|line| line.strip_prefix("group: ")).unwrap();
    (group.to_owned(), exposition.to_owned())
}

/// Writes a payload with these times in its header.
#[track_caller]
pub(crate) fn write_payload(spool: &Path, gateway: &str, job: &str, times: &[(&str, f64)], text: &str) {
    let mut crc = flate2::Crc::new();
    crc.update(text.as_bytes());
    let times: String = times.iter().map(|(key, time)| format!("{key}: {time}\n")).collect();
    let head = format!(
        "tracing-stage-metrics spool 2\ngroup: /metrics/job/{job}\ngateway: {gateway}\nnamespace: quant\n{times}\
         content-type: text/plain; version=0.0.4; charset=utf-8\nlength: {}\ncrc32: {:08x}\n\n",
        text.len(),
        crc.sum()
    );
    let number = payloads(spool).len();
    fs::write(spool.join(format!("{number:020}-{:08x}-17-{number:016x}.spool", 0xbad_cafe)), head + text).unwrap();
}

/// Readdresses all payloads to the gateway at this URL, without replacing the files, so that locks hold.
pub(crate) fn readdress(spool: &Path, url: &str) {
    for payload in payloads(spool) {
        edit_header(&payload, |line| line.starts_with("gateway: ").then(|| format!("gateway: {url}")));
    }
}

/// Replaces header lines of a payload.
#[track_caller]
pub(crate) fn edit_header(payload: &Path, replace: impl Fn(&str) -> Option<String>) {
    // Foreign, damaged and already removed files stay as they are.
    let Ok(content) = fs::read(payload) else { return };
    let Some(end) = content.windows(2).position(|pair| pair == b"\n\n") else { return };
    let Ok(head) = str::from_utf8(&content[..end]) else { return };
    let lines: Vec<_> = head.lines().map(|line| replace(line).unwrap_or_else(|| line.to_owned())).collect();
    let edited = [lines.join("\n").as_bytes(), &content[end..]].concat();
    if edited != content {
        fs::OpenOptions::new().write(true).truncate(true).open(payload).unwrap().write_all(&edited).unwrap();
    }
}

#[track_caller]
pub(crate) fn await_no_payload(spool: &Path) {
    await_true(&format!("no payload in {}", spool.display()), || payloads(spool).is_empty());
}
