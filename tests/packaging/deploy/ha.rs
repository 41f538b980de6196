//! What The page on high availability says about keepalived.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::pages::block;
use crate::support::{Backend, Router};

const PAGE: &str = "docs/high-availability.md";

#[test]
#[ignore = "needs keepalived"]
fn keepalived_understands_its_configuration() {
    let directory = TempDir::new().unwrap();
    // It looks for the interface, whatever that is called here.
    let links = std::fs::read_dir("/sys/class/net").unwrap().map(|link| link.unwrap());
    let link = links.map(|link| link.file_name().into_string().unwrap()).find(|name| name != "lo").unwrap();
    let text = block(PAGE, "keepalived").replace("eth0", &link);
    // What it finds wrong. It ends its whole process group, and so never well.
    let check = |text: &str| {
        let (file, log) = (directory.path().join("keepalived.conf"), directory.path().join("log"));
        std::fs::write(&file, text).unwrap();
        let mut keepalived = Command::new("keepalived");
        keepalived.arg("--use-file").arg(&file).arg(format!("--config-test={}", log.display()));
        keepalived.process_group(0).status().unwrap();
        std::fs::read_to_string(log).unwrap()
    };
    assert_eq!(check(&text), "");
    assert!(check(&text.replace("nopreempt", "nopreemt")).contains("'nopreemt'"));
    assert!(check(&text.replace("        snigate\n", "        snigat\n")).contains("snigat"), "it is read to the end");
}

#[test]
#[ignore = "needs curl"]
fn keepaliveds_script_moves_the_address_as_soon_as_an_instance_drains() {
    let backend = Backend::named("served");
    let config =
        crate::support::router::config(&[("a.example", backend.address())], "timeouts: {shutdown_delay: 10m}\n");
    let router = Router::start(&config);
    let keepalived = block(PAGE, "keepalived");
    let script =
        keepalived.lines().find_map(|line| line.trim().strip_prefix("script \"")).unwrap().trim_end_matches('"');
    let ask = || {
        let script = script.replace("127.0.0.1:9443", &router.admin().to_string());
        Command::new("sh").args(["-c", &script]).output().unwrap()
    };
    let asked = ask();
    assert!(asked.status.success(), "{asked:?}");
    router.signal(Signal::TERM);
    router.wait("that it drains", |line| line["message"] == "not ready; still accepting for shutdown_delay");
    crate::support::eventually("it says so", || !ask().status.success());
    let told = String::from_utf8(ask().stderr).unwrap();
    assert!(told.contains("503"), "{told}");
    assert_eq!(router.get("/livez").0, 200);
}
