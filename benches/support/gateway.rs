//! A real Pushgateway on a free port, stopped on drop.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) struct Gateway {
    process: Child,
    port: u16,
}

impl Gateway {
    /// Returns `None` if it is not installed.
    pub(crate) fn start() -> io::Result<Option<Self>> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let process = Command::new("prometheus-pushgateway")
            .args([&format!("--web.listen-address=127.0.0.1:{port}"), "--persistence.file="])
            .stderr(Stdio::null())
            .spawn();
        let process = match process {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            process => process?,
        };
        let gateway = Self { process, port };
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Err(error) = gateway.connect() {
            if Instant::now() > deadline {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Some(gateway))
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn connect(&self) -> io::Result<TcpStream> {
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Returns the text that a Prometheus would scrape.
    pub(crate) fn scrape(&self) -> io::Result<String> {
        let mut stream = self.connect()?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
