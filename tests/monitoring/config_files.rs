//! The configuration files name each other's paths, ports and data source correctly.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::dashboard::{list, text};
use super::files;
use super::support::servers::{AMTOOL, installed};

/// Returns the services of `compose.yml`.
fn services() -> Value {
    files::yaml("compose.yml")["services"].take()
}

#[test]
fn images_have_pinned_versions() {
    let services = services();
    let images: Vec<_> = services.as_object().unwrap().values().map(|service| text(service, "image")).collect();
    assert_eq!(images.len(), 5);
    for image in images {
        let version = image.split_once(':').map(|(_, tag)| tag.trim_start_matches('v'));
        let numbers: Vec<_> = version.unwrap_or_default().split('.').map(str::parse::<u32>).collect();
        assert!(numbers.len() == 3 && numbers.iter().all(Result::is_ok), "{image}");
    }
}

#[test]
fn mounted_files_exist() {
    let services = services();
    let mut mounted = 0;
    for volume in services.as_object().unwrap().values().flat_map(|service| list(&service["volumes"])) {
        let (from, _) = volume.as_str().unwrap().split_once(':').unwrap();
        if let Some(file) = from.strip_prefix("./") {
            mounted += 1;
            assert!(files::path(file).exists(), "{file}");
        }
    }
    assert_eq!(mounted, 7);
}

/// Returns the path of an `examples/monitoring` file inside the container.
#[track_caller]
fn path_in_container(service: &str, file: &str) -> String {
    let services = services();
    let volumes = list(&services[service]["volumes"]).iter().map(|volume| volume.as_str().unwrap().to_owned());
    let mounts = volumes.filter_map(|volume| volume.strip_prefix("./").map(str::to_owned));
    let to = mounts.filter_map(|mount| {
        let (from, to) = mount.split_once(':')?;
        Some(format!("{}{}", to.trim_end_matches(":ro"), file.strip_prefix(from)?))
    });
    let to: Vec<_> = to.collect();
    assert_eq!(to.len(), 1, "{file} in {service}: {to:?}");
    to[0].clone()
}

#[test]
fn prometheus_config_and_rules_are_mounted_together() {
    let config = path_in_container("prometheus", "prometheus.yml");
    let services = services();
    assert!(list(&services["prometheus"]["command"]).contains(&Value::from(format!("--config.file={config}"))));
    let (directory, _) = config.rsplit_once('/').unwrap();
    let named = files::yaml("prometheus.yml");
    let named: BTreeSet<_> = list(&named["rule_files"]).iter().map(|name| name.as_str().unwrap()).collect();
    let there = files::with_suffix(".rules.yml");
    assert_eq!(named, there.iter().map(String::as_str).collect());
    for name in there {
        assert_eq!(path_in_container("prometheus", &name), format!("{directory}/{name}"));
    }
}

#[test]
fn grafana_provisioning_names_dashboard_and_prometheus() {
    let provider = files::yaml("grafana/provisioning/dashboards/quant.yml");
    let directory = text(&provider["providers"][0]["options"], "path").to_owned();
    assert_eq!(path_in_container("grafana", "grafana/dashboards/quant.json"), format!("{directory}/quant.json"));
    for kind in ["dashboards/quant.yml", "datasources/prometheus.yml"] {
        let file = path_in_container("grafana", &format!("grafana/provisioning/{kind}"));
        assert_eq!(file, format!("/etc/grafana/provisioning/{kind}"));
    }
    let sources = files::yaml("grafana/provisioning/datasources/prometheus.yml");
    let source = &sources["datasources"][0];
    assert_eq!((text(source, "type"), text(source, "url")), ("prometheus", "http://localhost:9090"));
    assert_eq!(source["isDefault"], true, "the dashboard starts with the default data source");
    assert_eq!(listen_address("prometheus"), "127.0.0.1:9090");
}

#[test]
fn prometheus_stores_exemplars_that_link_to_jaeger() {
    let services = services();
    assert!(list(&services["prometheus"]["command"]).contains(&"--enable-feature=exemplar-storage".into()));
    let gateway = scraped("pushgateway");
    assert_eq!(gateway["scrape_protocols"][0], "PrometheusProto", "the text formats of a gateway have no exemplars");
    let sources = files::yaml("grafana/provisioning/datasources/prometheus.yml");
    let links = list(&sources["datasources"][0]["jsonData"]["exemplarTraceIdDestinations"]);
    assert_eq!(links.len(), 1, "{links:?}");
    // `tests/trace_ids` asserts that this is the label of exemplars. Grafana reads `$$` in a provisioned file as `$`.
    assert_eq!(text(&links[0], "name"), "trace_id");
    assert_eq!(text(&links[0], "url"), "http://localhost:16686/trace/$${__value.raw}");
    assert_eq!(services["jaeger"]["environment"]["JAEGER_LISTEN_HOST"], "127.0.0.1");
    let page = "--set=extensions.jaeger_query.http.endpoint=127.0.0.1:16686";
    assert_eq!(services["jaeger"]["command"][0], page, "the page has a setting of its own");
}

#[test]
fn prometheus_scrapes_the_gateway_with_honor_labels() {
    let job = scraped("pushgateway");
    assert_eq!(job["honor_labels"], true);
    assert_eq!(job["static_configs"][0]["targets"][0], "localhost:9091");
    assert_eq!(listen_address("pushgateway"), "127.0.0.1:9091");
    assert!(files::text("quant.rules.yml").contains("up{job=\"pushgateway\"}"), "the alert's job name");
}

#[test]
fn prometheus_sends_alerts_to_the_alertmanager_with_its_config() {
    let prometheus = files::yaml("prometheus.yml");
    let alertmanagers = &prometheus["alerting"]["alertmanagers"];
    assert_eq!(alertmanagers[0]["static_configs"][0]["targets"][0], "localhost:9093");
    assert_eq!(listen_address("alertmanager"), "127.0.0.1:9093");
    let config = path_in_container("alertmanager", "alertmanager.yml");
    let services = services();
    assert!(list(&services["alertmanager"]["command"]).contains(&Value::from(format!("--config.file={config}"))));
}

/// A receiver that nobody has filled in is an address that does not exist, and says so in the log.
#[test]
fn each_receiver_has_a_route_and_an_url_to_fill_in() {
    let config = files::yaml("alertmanager.yml");
    let route = &config["route"];
    let routed: BTreeSet<_> =
        list(&route["routes"]).iter().chain([route]).map(|route| text(route, "receiver")).collect();
    let receivers = list(&config["receivers"]);
    assert_eq!(routed, receivers.iter().map(|receiver| text(receiver, "name")).collect());
    assert_eq!(routed.len(), 3);
    for receiver in receivers {
        let url = text(&receiver["webhook_configs"][0], "url");
        assert!(url.starts_with("http://fill-in-the-url-of-your-") && url.ends_with(".invalid"), "{url}");
    }
}

#[test]
fn alerts_of_the_config_exist() {
    let config = files::text("alertmanager.yml");
    let words = config.split(|c: char| !c.is_ascii_alphanumeric());
    let alerts: BTreeSet<_> =
        words.filter(|word| word.starts_with("Batch") && word.len() > "BatchStage".len()).collect();
    assert!(alerts.len() > 5, "{alerts:?}");
    let rules = files::text("quant.rules.yml");
    let unknown: Vec<_> = alerts.iter().filter(|alert| !rules.contains(&format!("alert: {alert}\n"))).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

/// The page about a failed run waits ten minutes for a retry, and holds back the warnings about its stages.
#[test]
fn warnings_wait_longer_than_the_page_that_holds_them_back() {
    let config = files::yaml("alertmanager.yml");
    let route = &config["route"];
    let warnings = list(&route["routes"]).iter().find(|route| text(route, "receiver") == "tickets").unwrap();
    let minutes = |route: &Value| text(route, "group_wait").strip_suffix('m').unwrap().parse::<u64>().unwrap();
    assert!(minutes(warnings) > 10 + minutes(route), "{config}");
    let evaluations = files::yaml("prometheus.yml")["global"]["evaluation_interval"].take();
    assert_eq!(evaluations, "30s", "the page waits longer than an evaluation");
    assert!(minutes(route) >= 1, "{config}");
}

fn check_config(config: &Path) -> Output {
    Command::new(AMTOOL).arg("check-config").arg(config).output().unwrap()
}

#[test]
fn amtool_accepts_the_config_and_no_misspelt_setting() {
    if !installed(AMTOOL) {
        return;
    }
    let checked = check_config(&files::path("alertmanager.yml"));
    assert!(checked.status.success(), "{checked:?}");
    let directory = tempfile::tempdir().unwrap();
    let misspelt = directory.path().join("alertmanager.yml");
    std::fs::write(&misspelt, files::text("alertmanager.yml").replace("inhibit_rules:", "inhibit_rule:")).unwrap();
    let checked = check_config(&misspelt);
    assert!(!checked.status.success(), "{checked:?}");
}

#[test]
fn prometheus_scrapes_itself() {
    assert_eq!(scraped("prometheus")["static_configs"][0]["targets"][0], "localhost:9090");
    assert_eq!(listen_address("prometheus"), "127.0.0.1:9090");
}

/// Returns the configuration of a scrape job.
#[track_caller]
fn scraped(name: &str) -> Value {
    let config = files::yaml("prometheus.yml");
    list(&config["scrape_configs"]).iter().find(|job| text(job, "job_name") == name).unwrap().clone()
}

/// Returns the address in the service's `--web.listen-address`.
fn listen_address(service: &str) -> String {
    let services = services();
    let command = list(&services[service]["command"]).iter().map(|argument| argument.as_str().unwrap());
    let address = command.filter_map(|argument| argument.strip_prefix("--web.listen-address=")).next();
    address.unwrap().to_owned()
}
