//! A gateway that refuses series which another group has: the part of the push that is sent a second time.
//! `real_gateway.rs` tests the text of the error at a real gateway.

use super::builder;
use super::support::measured::{Measured, measured};
use super::support::mock_gateway::{Answer, Request};
use super::support::{MockGateway, Reply};

const OWN: &str = "# TYPE quant_stage_active gauge\nquant_stage_active 0\n";
const APPLICATION: &str = "# TYPE rows gauge\nrows 1\n";

/// A gateway that refuses every push with this metric.
fn refusing(metric: &'static str) -> MockGateway {
    let body = format!(
        "pushed metrics are invalid or inconsistent with existing metrics: collected metric \"{metric}\" {{ \
         label:<name:\"instance\" value:\"\" > label:<name:\"job\" value:\"j\" > gauge:<value:1 > }} was collected before with \
         the same name and label values\n"
    );
    let groups = "push_time_seconds{instance=\"\",job=\"j\"} 1.7e+09\n";
    MockGateway::start_with(move |request| {
        let answer = match request.method.as_str() {
            "GET" => Answer::new(200).with_body(groups),
            _ if request.text().contains(&format!("TYPE {metric} ")) => Answer::new(400).with_body(&body),
            _ => Answer::new(200),
        };
        Reply::Answer(answer)
    })
}

/// The error of the final flush to this gateway, and the requests of the flush.
fn shutdown(server: &MockGateway) -> (String, Vec<Request>) {
    shutdown_with(server, [OWN, APPLICATION].concat())
}

fn shutdown_with(server: &MockGateway, text: String) -> (String, Vec<Request>) {
    // Without `quant_run_info`, so that the text is all there is.
    let builder = builder(&server.url()).without_run_id_label().with_exposition(move || text.clone());
    let Measured { guard, log: _, default: _default } = measured(builder);
    // The first push has ended.
    guard.flush().unwrap_err();
    let before = server.requests().len();
    let error = guard.shutdown().unwrap_err();
    assert_eq!(error.status(), Some(400));
    (format!("{error:?}"), server.requests().split_off(before))
}

fn methods(requests: &[Request]) -> Vec<&str> {
    requests.iter().map(|request| request.method.as_str()).collect()
}

#[test]
fn conflict_of_the_crates_families_is_not_retried() {
    let server = refusing("quant_stage_active");
    let (error, requests) = shutdown(&server);
    assert_eq!(methods(&requests), ["POST", "GET"]);
    // The conflicting group is not the group of the push.
    assert!(error.contains("it is a group that this job pushed to with other grouping labels"), "{error}");
    assert!(!error.contains("curl"), "{error}");
}

#[test]
fn conflict_of_the_applications_families_pushes_the_stages_alone() {
    let server = refusing("rows");
    let (error, requests) = shutdown(&server);
    assert_eq!(methods(&requests), ["POST", "POST", "GET"]);
    assert!(requests[1].text().contains("quant_stage_active") && !requests[1].text().contains("rows"));
    let expected = format!(
        "gateway {0} refused the application's own metrics; the stages were pushed without them: gateway {0} refused the \
         push, since another group holds the same series",
        server.url()
    );
    assert!(error.starts_with(&expected), "{error}");
}

#[test]
fn refused_push_with_nothing_to_leave_out_is_not_retried() {
    for text in [OWN, APPLICATION] {
        let server = MockGateway::start([Reply::status(400)]);
        let (error, requests) = shutdown_with(&server, text.to_owned());
        assert_eq!(methods(&requests), ["POST"], "{text}");
        assert!(!error.contains("the application's own metrics"), "{error}");
    }
}
