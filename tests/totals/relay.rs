//! A relay before a real gateway, which loses requests and answers of the group of job `j`.

use std::sync::{Arc, Mutex};

use super::support::mock_gateway::{Answer, Request};
use super::support::{self, MockGateway, Pushgateway, Reply, http};

/// What happens to the requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mode {
    Forward,
    /// Pushes are refused.
    Refuse,
    /// Pushes are lost, and nobody can know it.
    Lose,
    /// Pushes arrive, and their answers are lost.
    LoseAnswers,
    /// The metrics of the gateway are not shown.
    Hide(u16, &'static str),
    /// The gateway is away, and a proxy before it says that there is nothing.
    Away,
    /// Reads are answered after [`Relay::release`].
    HoldReads,
    /// Pushes arrive, and are answered after [`Relay::release`].
    HoldPushes,
}

pub(crate) struct Relay {
    mock: MockGateway,
    mode: Arc<Mutex<Mode>>,
}

impl Relay {
    pub(crate) fn start(server: &Pushgateway) -> Self {
        let (addr, mode) = (server.addr(), Arc::new(Mutex::new(Mode::Forward)));
        let of_relay = Arc::clone(&mode);
        let mock = MockGateway::start_with(move |request| {
            let is_push = request.method == "POST" && request.path == "/metrics/job/j";
            let forward = || {
                let headers: Vec<_> = ["Content-Type", "Content-Encoding"]
                    .into_iter()
                    .filter_map(|name| Some((name, request.header(name)?)))
                    .collect();
                let response = http::request(addr, &request.method, &request.path, &headers, &request.body).unwrap();
                let answer = Answer::new(response.status).with_body(&response.body);
                response.header("Date").map_or(answer.clone(), |date| answer.with_header("Date", date))
            };
            match *of_relay.lock().unwrap() {
                Mode::Refuse if is_push => Reply::status(401),
                Mode::Lose if is_push => Reply::Reset,
                Mode::LoseAnswers if is_push => {
                    forward();
                    Reply::Reset
                }
                Mode::Hide(status, body) if request.method == "GET" => {
                    Reply::Answer(Answer::new(status).with_body(body))
                }
                Mode::Away => Reply::status(404),
                Mode::HoldReads if request.method == "GET" => Reply::Held(forward()),
                Mode::HoldPushes if is_push => Reply::Held(forward()),
                _ => Reply::Answer(forward()),
            }
        });
        Self { mock, mode }
    }

    pub(crate) fn url(&self) -> String {
        self.mock.url()
    }

    pub(crate) fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    /// Sends the held answers.
    pub(crate) fn release(&self) {
        self.mock.release();
    }

    /// Waits for this number of requests with the method.
    pub(crate) fn await_requests(&self, method: &str, count: usize) {
        let requests = || self.mock.requests().into_iter().filter(|request| request.method == method).count();
        support::await_true(&format!("{count} requests with {method}"), || requests() >= count);
    }

    /// The pushes to the group.
    pub(crate) fn pushes(&self) -> Vec<Request> {
        let requests = self.mock.requests().into_iter();
        requests.filter(|request| request.method == "POST" && request.path == "/metrics/job/j").collect()
    }
}
