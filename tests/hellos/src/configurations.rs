//! Configurations of routers for a run: each as strict as its manual allows, so that what is not a ClientHello is refused
//! where the router can refuse it.

use std::net::SocketAddr;

/// The routers, and how each is started with the file.
pub(crate) const ROUTERS: [(&str, &str); 5] = [
    ("envoy", "envoy -c FILE --concurrency 1"),
    ("haproxy", "haproxy -db -f FILE"),
    ("nginx", "nginx -c FILE -g 'daemon off;'"),
    ("sniproxy", "sniproxy -f -c FILE"),
    ("snigate", "snigate run -c FILE"),
];

/// The configuration of this router; `None` if it is not listed.
pub(crate) fn configuration(router: &str, listen: SocketAddr, [a, b, other]: [SocketAddr; 3]) -> Option<String> {
    Some(match router {
        "envoy" => envoy(listen, [a, b, other]),
        "haproxy" => format!(
            "global
    maxconn 1000

defaults
    mode tcp
    timeout connect 2s
    timeout client 10s
    timeout server 10s

frontend hellos
    bind {listen}
    tcp-request inspect-delay 1s
    tcp-request content accept if {{ req.ssl_hello_type 1 }}
    tcp-request content reject
    use_backend a if {{ req.ssl_sni -i a.example }}
    use_backend b if {{ req.ssl_sni -i b.example }}
    default_backend other

backend a
    server a {a}
backend b
    server b {b}
backend other
    server other {other}
"
        ),
        "nginx" => format!(
            "# Debian has the stream module in a file of its own.
include /etc/nginx/modules-enabled/*.conf;
pid /tmp/snigate-hellos-nginx.pid;
error_log stderr crit;
events {{}}
stream {{
    map $ssl_preread_server_name $by_name {{
        a.example {a};
        b.example {b};
        default {other};
    }}
    # What is not TLS has no protocol, and an empty backend refuses it.
    map $ssl_preread_protocol $backend {{
        \"\" \"\";
        default $by_name;
    }}
    server {{
        listen {listen};
        ssl_preread on;
        preread_timeout 1s;
        proxy_pass $backend;
    }}
}}
"
        ),
        "sniproxy" => format!(
            "listen {listen} {{
    proto tls
    table hellos
    fallback {other}
}}

table hellos {{
    (?i)^a[.]example\\\\z {a}
    (?i)^b[.]example\\\\z {b}
    .* {other}
}}
"
        ),
        "snigate" => format!(
            "listen: \"{listen}\"
timeouts: {{hello: 1s}}
routes:
  - {{sni: a.example, upstream: \"{a}\"}}
  - {{sni: b.example, upstream: \"{b}\"}}
  - {{name: other, upstream: \"{other}\"}}
"
        ),
        _ => return None,
    })
}

fn envoy(listen: SocketAddr, backends: [SocketAddr; 3]) -> String {
    let names = ["a", "b", "other"];
    let socket = |address: SocketAddr| {
        format!("{{socket_address: {{address: \"{}\", port_value: {}}}}}", address.ip(), address.port())
    };
    // A chain for TLS with other names or none; what is not TLS has no chain.
    let matches = ["server_names: [a.example]", "server_names: [b.example]", "transport_protocol: tls"];
    let chains = names.iter().zip(matches).map(|(name, matches)| {
        format!(
            "    - filter_chain_match: {{{matches}}}
      filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: {name}
          cluster: {name}
"
        )
    });
    let clusters = names.iter().zip(backends).map(|(name, address)| {
        format!(
            "  - name: {name}
    connect_timeout: 2s
    type: STATIC
    load_assignment:
      cluster_name: {name}
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {}}}}}]}}]
",
            socket(address)
        )
    });
    format!(
        "static_resources:
  listeners:
  - name: hellos
    address: {}
    listener_filters:
    - name: envoy.filters.listener.tls_inspector
      typed_config:
        \"@type\": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector
    listener_filters_timeout: 1s
    filter_chains:
{}  clusters:
{}",
        socket(listen),
        chains.collect::<String>(),
        clusters.collect::<String>()
    )
}
