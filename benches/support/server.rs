//! A real server on a free port, stopped on drop.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) struct Server {
    pub(crate) process: Child,
    port: u16,
}

impl Server {
    /// Starts a Pushgateway. Returns `None` if it is not installed.
    pub(crate) fn gateway(arguments: &[&str]) -> io::Result<Option<Self>> {
        Self::start("prometheus-pushgateway", |command, port| {
            command.args([&format!("--web.listen-address=127.0.0.1:{port}"), "--persistence.file="]).args(arguments);
        })
    }

    /// Starts a program with arguments that make it listen on this port. Returns `None` if it is not installed.
    pub(crate) fn start(program: &str, arguments: impl FnOnce(&mut Command, u16)) -> io::Result<Option<Self>> {
        let port = free_port()?;
        let mut command = Command::new(program);
        arguments(&mut command, port);
        let process = match command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            process => process?,
        };
        let server = Self { process, port };
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Err(error) = server.connect() {
            if Instant::now() > deadline {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Some(server))
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn connect(&self) -> io::Result<TcpStream> {
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Returns the response to a GET request, its head included: that of a gateway to `/metrics` has what a Prometheus
    /// would scrape.
    pub(crate) fn get(&self, path: &str) -> io::Result<String> {
        let mut stream = self.connect()?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(crate) fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
