//! `snigate demo`: two throwaway clusters behind one address, and clients that reach them.

mod client;
mod cluster;

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use std::{fs, io};

use crate::config::{Config, Log, LogFormat};
use crate::server::Server;
use anyhow::{Context, bail};
use tempfile::TempDir;
use tokio::net::TcpSocket;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
use tracing::Level;

use self::client::{Answer, Identity};
use self::cluster::{Authority, Cluster};
use crate::cli::Demo;
use crate::logging::{self, Logging};

const OPEN: &str = "kubernetes01.demo.test";
/// Asks its clients for certificates.
const GUARDED: &str = "kubernetes02.demo.test";
const UNKNOWN: &str = "kubernetes03.demo.test";
const USER: &str = "jane";

pub(super) fn run(options: &Demo) -> anyhow::Result<ExitCode> {
    // What is logged is shown when all is explained.
    let logging = logging::start(&Log { format: LogFormat::Auto, level: Level::ERROR, refusals_per_second: 0 });
    tokio::runtime::Runtime::new()?.block_on(show(options, &logging))
}

async fn show(options: &Demo, logging: &Logging) -> anyhow::Result<ExitCode> {
    let open_authority = Authority::new("kubernetes01")?;
    let guarded_authority = Authority::new("kubernetes02")?;
    let identity = guarded_authority.issue_client(USER)?;
    let open = Cluster::start(&open_authority, OPEN, None).await?;
    let guarded = Cluster::start(&guarded_authority, GUARDED, Some(&identity)).await?;

    // Bound, so that nobody else has it, and nobody listens there.
    let dead = TcpSocket::new_v4()?;
    dead.bind((Ipv4Addr::LOCALHOST, 0).into())?;
    let config = format!(
        "listen: \"{}\"
admin: 127.0.0.1:0
routes:
  - sni: {OPEN}
    upstream:
      endpoints: [\"{}\", \"{}\"]      # nobody listens at the second
      health_check: {{interval: 1s}}
  - sni: {GUARDED}
    upstream: {}
timeouts: {{drain: 1s}}
",
        options.listen,
        open.address(),
        dead.local_addr()?,
        guarded.address()
    );
    let (mut server, _) = Server::start(Config::from_yaml(config.as_bytes())?, Vec::new())?;
    let address = *server.addresses().first().context("the router has no address")?;
    let admin = server.admin_address().context("the router has no admin listener")?;

    let cases = [
        Case { name: OPEN, authority: &open_authority, identity: None, expected: "answered" },
        Case { name: GUARDED, authority: &guarded_authority, identity: Some(&identity), expected: "answered" },
        Case { name: GUARDED, authority: &guarded_authority, identity: None, expected: "CertificateRequired" },
        Case { name: UNKNOWN, authority: &open_authority, identity: None, expected: "UnrecognisedName" },
    ];
    let mut rows = Vec::new();
    for case in &cases {
        rows.push(case.row(client::ask(address, case.name, case.authority, case.identity).await)?);
    }
    let config = config.replacen(&options.listen.to_string(), &address.to_string(), 1);
    let config = config.replace("admin: 127.0.0.1:0", &format!("admin: {admin}"));
    print(&table(address, &config, &rows))?;
    if options.once {
        server.drain().await;
        return Ok(ExitCode::SUCCESS);
    }

    let files = TempDir::with_prefix("snigate-demo-")?;
    write_files(files.path(), address, &open_authority, &guarded_authority, &identity)?;
    // The same without the second cluster.
    let (before, rest) = config.split_once(&format!("  - sni: {GUARDED}\n")).context("no such route")?;
    let after = rest.split_once('\n').map_or("", |(_, after)| after);
    fs::write(files.path().join("next.yaml"), format!("{before}{after}"))?;
    print(&commands(files.path(), address, admin))?;
    while server.connections() > 0 {
        sleep(Duration::from_millis(1)).await;
    }
    logging.set_level(Level::INFO);
    let (mut terminate, mut hang_up) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
    server.drain().await;
    Ok(ExitCode::SUCCESS)
}

/// One request, and what should become of it.
struct Case<'a> {
    name: &'static str,
    authority: &'a Authority,
    identity: Option<&'a Identity>,
    expected: &'static str,
}

impl Case<'_> {
    fn row(&self, answer: anyhow::Result<Answer>) -> anyhow::Result<Row> {
        let Self { name, identity, expected, .. } = self;
        let as_who = identity.map_or("no certificate", |_| USER);
        match answer? {
            Answer::Body { cluster, seen, certificate } if *expected == "answered" => {
                Ok([(*name).into(), as_who.into(), certificate, format!("200 OK from {cluster}"), seen])
            }
            Answer::Alert { alert, certificate } if alert == *expected => {
                let certificate = certificate.unwrap_or_else(|| "none".into());
                Ok([(*name).into(), as_who.into(), certificate, format!("alert {alert}"), "no one".into()])
            }
            other => bail!("{name}: expected {expected}, not {other:?}"),
        }
    }
}

/// What was asked for, the client's certificate, the server's, what came back, whom the server saw.
type Row = [String; 5];

fn table(address: SocketAddr, config: &str, rows: &[Row]) -> String {
    let heading = ["NAME", "CLIENT", "CERTIFICATE SEEN", "ANSWER", "SERVER SAW"].map(String::from);
    let all: Vec<&Row> = std::iter::once(&heading).chain(rows).collect();
    let widths: Vec<usize> =
        (0..heading.len()).map(|column| all.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
    let mut text = format!("\nsnigate routes two clusters at {address}:\n\n");
    for line in config.lines() {
        let _ = writeln!(text, "    {line}");
    }
    text.push_str("\nVerified TLS requests through it:\n\n");
    for row in all {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(text, "    {}", cells.join("   ").trim_end());
    }
    text.push('\n');
    text
}

fn write_files(
    directory: &Path,
    address: SocketAddr,
    open: &Authority,
    guarded: &Authority,
    identity: &Identity,
) -> io::Result<()> {
    let path = |name: &str| directory.join(name).display().to_string();
    fs::write(path("kubernetes01-ca.pem"), open.pem())?;
    fs::write(path("kubernetes02-ca.pem"), guarded.pem())?;
    fs::write(path("jane.pem"), identity.certificate_pem())?;
    fs::write(path("jane-key.pem"), identity.key_pem())?;
    let cluster = |number: &str| {
        format!(
            "- name: kubernetes{number}\n  cluster:\n    server: https://{address}\n    tls-server-name: kubernetes{number}.demo.test\n    certificate-authority: {}\n",
            path(&format!("kubernetes{number}-ca.pem"))
        )
    };
    let context =
        |number: &str| format!("- name: kubernetes{number}\n  context: {{cluster: kubernetes{number}, user: jane}}\n");
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: kubernetes02\nclusters:\n{}{}contexts:\n{}{}users:\n- name: jane\n  user:\n    client-certificate: {}\n    client-key: {}\n",
        cluster("01"),
        cluster("02"),
        context("01"),
        context("02"),
        path("jane.pem"),
        path("jane-key.pem")
    );
    fs::write(path("kubeconfig"), kubeconfig)
}

fn commands(directory: &Path, address: SocketAddr, admin: SocketAddr) -> String {
    let directory = directory.display();
    let program = std::env::args().next().unwrap_or_else(|| "snigate".into());
    format!(
        "The status page, with one dead endpoint: http://{admin}/

Try it by hand, in another terminal; what snigate logs follows below:

    {program} plan -c {directory}/next.yaml --admin {admin}
    cd {directory}
    curl --cacert kubernetes01-ca.pem --connect-to ::{address} https://{OPEN}/version
    curl --cacert kubernetes02-ca.pem --cert jane.pem --key jane-key.pem --connect-to ::{address} https://{GUARDED}/version
    openssl s_client -connect {address} -servername {UNKNOWN} </dev/null
    kubectl --kubeconfig kubeconfig get --raw /version

Ctrl-C ends it and removes the files.
"
    )
}

fn print(text: &str) -> io::Result<()> {
    io::stdout().write_all(text.as_bytes())
}
