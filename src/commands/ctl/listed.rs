//! `snigate ctl routes` and `snigate ctl endpoints`, from the status of the instance.

use std::path::Path;

use hyper::Method;
use serde_json::Value;

use super::client::{Target, json};
use super::print;
use super::table::{bytes, table};
use crate::cli::Listed;
use crate::commands::admin::{array, endpoints_of};
use crate::upstream::DRAINED;

async fn status(socket: &Path, route: Option<&str>) -> anyhow::Result<Value> {
    json(socket, Method::GET, Target::new("/api/status").with("route", route)).await
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").into()
}

fn number(value: &Value) -> String {
    value.as_u64().unwrap_or_default().to_string()
}

pub(super) async fn routes(socket: &Path, options: &Listed) -> anyhow::Result<()> {
    let status = status(socket, None).await?;
    let routes = array(&status["routes"]);
    if options.json {
        print(&format!("{:#}\n", Value::from(routes)))?;
        return Ok(());
    }
    let row = |route: &Value| {
        let endpoints: Vec<&Value> = endpoints_of(route).collect();
        let ready = endpoints.iter().filter(|endpoint| endpoint["state"] == "ready").count();
        let drained = endpoints.iter().filter(|endpoint| endpoint["state"] == DRAINED).count();
        let drained = if drained == 0 { String::new() } else { format!(", {drained} drained") };
        [
            text(&route["name"]),
            number(&route["connections"]),
            bytes(route["bytes_received"].as_u64().unwrap_or_default()),
            bytes(route["bytes_sent"].as_u64().unwrap_or_default()),
            text(&route["serving"]),
            format!("{ready} of {} ready{drained}", endpoints.len()),
        ]
    };
    let rows: Vec<_> = routes.iter().map(row).collect();
    print(&table(["ROUTE", ">CONNECTIONS", ">RECEIVED", ">SENT", "SERVING", "ENDPOINTS"], &rows))?;
    Ok(())
}

pub(super) async fn endpoints(socket: &Path, route: Option<&str>, options: &Listed) -> anyhow::Result<()> {
    let status = status(socket, route).await?;
    let routes = array(&status["routes"]);
    if options.json {
        let mut all = Vec::new();
        for route in routes {
            for endpoint in endpoints_of(route) {
                let mut endpoint = endpoint.clone();
                endpoint["route"] = route["name"].clone();
                all.push(endpoint);
            }
        }
        print(&format!("{:#}\n", Value::from(all)))?;
        return Ok(());
    }
    let mut rows = Vec::new();
    for route in routes {
        rows.extend(endpoints_of(route).map(|endpoint| {
            [
                text(&route["name"]),
                text(&endpoint["address"]),
                text(&endpoint["state"]),
                number(&endpoint["connections"]),
                text(&endpoint["cause"]),
            ]
        }));
    }
    print(&table(["ROUTE", "ENDPOINT", "STATE", ">CONNECTIONS", "CAUSE"], &rows))?;
    Ok(())
}
