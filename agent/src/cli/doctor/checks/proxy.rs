//! Proxies: containerd's way to us, and whether it and we go out by the same.

use crate::cli::doctor::facts::{Environment, Facts, Proxies};
use crate::cli::doctor::finding::{Finding, Mend, Severity};
use crate::config::reachable;

const CHECK: &str = "proxy";

/// Whether containerd would send requests for the mirror to a proxy.
pub(super) fn on_the_way_to_us(facts: &Facts) -> Vec<Finding> {
    let Some(Environment { proxies, .. }) = &facts.runtime.environment else { return Vec::new() };
    let mirror = reachable(facts.config.mirror.listen);
    let ip = mirror.ip();
    let Some(proxy) = proxies.catch(mirror, !facts.config.mirror.tls) else { return Vec::new() };
    let excepted = proxies.no.as_deref().map_or_else(|| ip.to_string(), |no| format!("{no},{ip}"));
    let what = format!("containerd sends requests for {mirror} to the proxy {}", shown(proxy));
    vec![
        Finding::new(CHECK, Severity::Problem, what)
            .because("its environment has a proxy, and NO_PROXY doesn't except the mirror")
            .mended_by([Mend::new(
                "write into /etc/systemd/system/containerd.service.d/no-proxy.conf",
                ["[Service]".to_owned(), format!("Environment=\"NO_PROXY={excepted}\"")],
            )
            .then(format!("systemctl daemon-reload && {}", facts.platform.restart()))]),
    ]
}

/// Whether the agent goes out by the proxy that containerd goes by. Nothing is copied: an administrator may want it so.
pub(super) fn ours_and_containerds(facts: &Facts) -> Vec<Finding> {
    let Some(theirs) = &facts.runtime.environment else { return unknown(facts) };
    // Without an agent there is nothing to compare with: this shell's environment isn't its.
    let Some(ours) = &facts.agent_environment else { return Vec::new() };
    let is_same = |a: &Option<String>, b: &Option<String>| bare(a.as_deref()) == bare(b.as_deref());
    let source = match &theirs.files[..] {
        [] => String::new(),
        files => {
            format!(", say {}", files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(" and "))
        }
    };
    let theirs = &theirs.proxies;
    if is_same(&theirs.https, &ours.https) && is_same(&theirs.http, &ours.http) {
        return if theirs.is_any() && !excepts_the_same(theirs, ours) {
            vec![exceptions(facts, theirs, ours)]
        } else {
            Vec::new()
        };
    }
    let (way, own) = (words(theirs), words(ours));
    let what = format!("containerd goes to registries {way}{source}; the agent goes {own}");
    if !theirs.is_any() {
        return vec![Finding::new(CHECK, Severity::Note, what)];
    }
    // Who has named proxies there knows what he does.
    let names_proxies =
        facts.config.registries.iter().flat_map(|registry| &registry.upstreams).any(|u| u.proxy.is_some());
    let severity = if names_proxies { Severity::Note } else { Severity::Problem };
    vec![
        Finding::new(CHECK, severity, what)
            .because("where the proxy is the only way out, the agent reaches no registry, and containerd goes past it")
            .mended_by(set(facts, theirs)),
    ]
}

/// From a Pod, neither containerd's process nor its unit is seen.
fn unknown(facts: &Facts) -> Vec<Finding> {
    if !facts.surroundings.is_pod || facts.runtime.release.is_err() {
        return Vec::new();
    }
    let own = facts.agent_environment.as_ref().map_or_else(|| "as this Pod says".to_owned(), words);
    vec![
        Finding::new(
            CHECK,
            Severity::Note,
            format!("containerd's proxies aren't seen from this Pod; the agent goes {own}"),
        )
        .because("where containerd goes by a proxy, the agent has to as well; it copies nothing by itself")
        .mended_by([Mend::new("look on the node", ["systemctl show containerd --property Environment"])]),
    ]
}

fn exceptions(facts: &Facts, theirs: &Proxies, ours: &Proxies) -> Finding {
    let show = |proxies: &Proxies| proxies.no.clone().unwrap_or_else(|| "nothing".to_owned());
    let what = format!("containerd's NO_PROXY excepts {}, the agent's {}", show(theirs), show(ours));
    Finding::new(CHECK, Severity::Note, what)
        .because("a registry that is excepted in one of them only is reached by different ways")
        .mended_by(set(facts, theirs))
}

/// The lines that give the agent the same.
fn set(facts: &Facts, proxies: &Proxies) -> Vec<Mend> {
    let variables = [("HTTP_PROXY", &proxies.http), ("HTTPS_PROXY", &proxies.https), ("NO_PROXY", &proxies.no)];
    let variables: Vec<_> =
        variables.iter().filter_map(|(name, value)| Some((*name, shown(value.as_deref()?)))).collect();
    if facts.surroundings.is_pod {
        let mut lines = vec!["env:".to_owned()];
        for (name, value) in &variables {
            lines.extend([format!("  - name: {name}"), format!("    value: {value:?}")]);
        }
        let pairs: Vec<_> = variables.iter().map(|(name, value)| format!("{name}='{value}'")).collect();
        let command = format!("kubectl --namespace larder set env daemonset/larder {}", pairs.join(" "));
        return vec![Mend::new("write into the chart's values", lines), Mend::run(command)];
    }
    let lines = std::iter::once("[Service]".to_owned())
        // systemd takes a percent sign for the beginning of something else.
        .chain(variables.iter().map(|(name, value)| format!("Environment=\"{name}={}\"", value.replace('%', "%%"))));
    vec![
        Mend::new("write into /etc/systemd/system/larder.service.d/proxy.conf", lines)
            .then("systemctl daemon-reload && systemctl restart larder"),
    ]
}

fn words(proxies: &Proxies) -> String {
    match (&proxies.https, &proxies.http) {
        (Some(proxy), _) => format!("by {}", shown(proxy)),
        (None, Some(proxy)) => format!("by {} where it is plain HTTP", shown(proxy)),
        (None, None) => "directly".to_owned(),
    }
}

fn excepts_the_same(a: &Proxies, b: &Proxies) -> bool {
    let entries = |proxies: &Proxies| {
        let list = proxies.no.clone().unwrap_or_default().to_ascii_lowercase();
        let mut entries: Vec<String> =
            list.split(',').map(|entry| entry.trim().to_owned()).filter(|entry| !entry.is_empty()).collect();
        entries.sort();
        entries.dedup();
        entries
    };
    entries(a) == entries(b)
}

fn bare(proxy: Option<&str>) -> Option<&str> {
    proxy.map(|proxy| proxy.trim_end_matches('/')).filter(|proxy| !proxy.is_empty())
}

/// A proxy's URL without its password, where it has one: what doctor says is shown to others.
fn shown(proxy: &str) -> String {
    let begin = proxy.find("://").map_or(0, |at| at + "://".len());
    let (scheme, rest) = proxy.split_at(begin);
    let login = rest.rsplit_once('@').and_then(|(login, host)| Some((login.split_once(':')?, host)));
    match login {
        Some(((user, password), host)) if !password.is_empty() => format!("{scheme}{user}:PASSWORD@{host}"),
        _ => proxy.to_owned(),
    }
}
