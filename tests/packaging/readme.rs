//! What the README says can be typed, typed.

use std::process::Command;

use tempfile::TempDir;

use crate::support::tls::Authority;
use crate::support::{Backend, Client, Hello, Router, all_output, snigate};

const README: &str = include_str!("../../README.md");

/// The fenced blocks of this kind.
fn blocks(kind: &str) -> Vec<&'static str> {
    let fence = format!("```{kind}\n");
    let blocks: Vec<_> = README.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(!blocks.is_empty(), "{kind}");
    blocks
}

#[test]
fn the_configuration_is_valid_and_its_commands_work() {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("snigate.yaml"), blocks("yaml")[0]).unwrap();
    let commands: Vec<&str> =
        blocks("sh").into_iter().flat_map(str::lines).filter(|line| line.starts_with("snigate ")).collect();
    let typed: Vec<Vec<&str>> =
        commands.iter().map(|line| line.split('#').next().unwrap().split_whitespace().skip(1).collect()).collect();
    let run = |arguments: &[&str]| snigate().args(arguments).current_dir(directory.path()).output().unwrap();
    assert_eq!(
        typed.iter().map(|arguments| arguments[0]).collect::<Vec<_>>(),
        ["check", "run", "explain", "plan", "kubeconfig"]
    );

    let checked = run(&typed[0]);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let explained = String::from_utf8(run(&typed[2]).stdout).unwrap();
    assert!(explained.contains("routes to  dev-api.internal:6443"), "{explained}");
    let planned = run(&["plan", "-c", typed[3][2], "--from", "snigate.yaml"]);
    assert!(String::from_utf8(planned.stdout).unwrap().contains("2 unchanged"));
    assert_eq!(typed[1], ["run", "-c", "snigate.yaml"], "runs in other tests, on ports that are free");
    Authority::new().write(directory.path(), "dev-ca.pem");
    let redirection = typed[4].iter().position(|word| *word == ">").unwrap();
    let kubeconfig = String::from_utf8(run(&typed[4][..redirection]).stdout).unwrap();
    assert!(kubeconfig.contains("server: https://dev.example.com:6443"), "{kubeconfig}");
}

#[test]
fn the_pool_is_valid() {
    let directory = TempDir::new().unwrap();
    Authority::new().write(directory.path(), "dev-ca.pem");
    let config = format!("listen: 127.0.0.1:0\n{}", blocks("yaml")[1]);
    std::fs::write(directory.path().join("snigate.yaml"), config).unwrap();
    let checked = snigate().arg("check").arg(directory.path().join("snigate.yaml")).output().unwrap();
    let told = String::from_utf8(checked.stdout).unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    for line in [
        "routes to  10.0.0.1:6443, 10.0.0.2:6443, 10.0.0.3:6443 (timeout 10s, 3s per try)",
        "balance    least_connections, slow_start 30s",
        "hostnames re-resolved every 10s",
        "on endpoint failure: close its connections after 15s",
        "on removal: drain",
        ", name kubernetes), GET /readyz (unauthorized: alive), every 5s, timeout 4s, rise 2, fall 3",
    ] {
        assert!(told.contains(line), "{line}\nin\n{told}");
    }
}

/// What `check` says of the configuration in this block.
fn checked(number: usize) -> String {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("snigate.yaml");
    std::fs::write(&path, blocks("yaml")[number]).unwrap();
    let checked = snigate().arg("check").arg(path).output().unwrap();
    assert!(checked.status.success(), "{}", all_output(&checked));
    String::from_utf8(checked.stdout).unwrap()
}

#[test]
fn the_access_rules_are_valid() {
    let told = checked(2);
    for line in
        ["allow all, deny 198.51.100.0/24", "allow 10.0.0.0/8, 2001:db8::/32, deny 10.66.0.0/16; max_connections 5000"]
    {
        assert!(told.contains(line), "{line}\nin\n{told}");
    }
}

#[test]
fn the_balancers_are_valid() {
    let told = checked(3);
    for line in ["PROXY header required, from 10.0.0.0/28", "(timeout 10s, 3s per try, PROXY header v2)"] {
        assert!(told.contains(line), "{line}\nin\n{told}");
    }
}

#[test]
fn the_form_without_a_file_works() {
    let line = README.lines().find(|line| line.starts_with("Without a file: `")).unwrap();
    let command = line.split('`').nth(1).unwrap();
    let (dev, other) = (Backend::named("dev"), Backend::named("other"));
    let command = command
        .replace("0.0.0.0:6443", "127.0.0.1:0")
        .replace("10.0.0.1:6443", &dev.address().to_string())
        .replace("10.0.0.9:6443", &other.address().to_string());
    let directory = TempDir::new().unwrap();
    let mut process = snigate();
    process.args(command.split(' ').skip(1));
    let router = Router::spawn(process, directory.path().into(), directory);
    for (name, expected) in [("dev.example.com", "dev"), ("x.example.com", "other")] {
        let mut client = Client::send(router.address(), &Hello::to(name).record());
        client.finish();
        assert_eq!(client.rest().0, expected.as_bytes());
    }
}

#[test]
#[ignore = "needs kubectl"]
fn kubectl_takes_the_commands() {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("dev-ca.pem"), "a certificate").unwrap();
    let scripts: Vec<&str> = blocks("sh").into_iter().filter(|block| block.starts_with("kubectl ")).collect();
    assert_eq!(scripts.len(), 3);
    for script in scripts {
        let output = Command::new("sh")
            .args(["-c", script])
            .current_dir(directory.path())
            .env("KUBECONFIG", directory.path().join("config"))
            .output()
            .unwrap();
        let told = all_output(&output);
        assert!(output.status.success() && told.contains("Cluster \"dev\" set."), "{script}: {told}");
    }
}
