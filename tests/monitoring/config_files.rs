//! The configuration files name each other's paths, ports and data source correctly.

use std::collections::BTreeSet;

use serde_json::Value;

use super::dashboard::{list, text};
use super::files;

/// Returns the services of `compose.yml`.
fn services() -> Value {
    files::yaml("compose.yml")["services"].take()
}

#[test]
fn images_have_pinned_versions() {
    let services = services();
    let images: Vec<_> = services.as_object().unwrap().values().map(|service| text(service, "image")).collect();
    assert_eq!(images.len(), 4);
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
    assert_eq!(mounted, 6);
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
