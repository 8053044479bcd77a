//! The status page in a real browser, and the textfile beside it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::FutureExt as _;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use larder::admin::page::{Look, Page, Sight};
use larder::admin::view::images::{Image as Row, Images, Kept, User};
use larder::admin::view::{Cache, Down, LastError, Mirror, Quota, Status as Doing, Upstream};
use larder::admin::{Minute, Origin};
use larder::containerd::canary::{Report, Verdict as Canary};
use larder::health::{Check, Status, Verdict};
use larder::image::Digest;
use larder::peers::{Shown, ShownMember, ShownPart};
use larder_integration::{Agent, AgentConfig, Browser, FaultRegistry, Folder, Image, Puller, Scheme, free_port, until};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::support::run;

/// The width of the narrowest phones that are about.
const PHONE: u32 = 360;

fn ago(minutes: i64) -> Timestamp {
    Timestamp::now().checked_sub(SignedDuration::from_mins(minutes)).unwrap()
}

fn row(name: &str, status: Status, verdict: Verdict, users: &[&str], mebibytes: u64) -> Row {
    let digest = Digest::of(name.as_bytes());
    let seen = if status == Status::Available { ago(12) } else { ago(60 * 30) };
    let registry = name.split('/').next().unwrap_or_default();
    let check = Check {
        upstream: format!("https://{registry}"),
        status,
        at: Some(ago(12)),
        available_at: Some(seen),
        digest: Some(digest),
        remark: (status == Status::Unreachable).then(|| format!("{registry}: connect timed out after 3s")),
    };
    let missing = if verdict.protected { 0 } else { mebibytes / 3 };
    Row {
        name: name.parse().unwrap(),
        digest,
        status: Some(status),
        verdict: Some(verdict),
        used_by: users.iter().map(|&name| User { name: name.to_owned(), stopped: false }).collect(),
        nodes: Vec::new(),
        kept: Some(if users.is_empty() { Kept::Unused } else { Kept::InUse }),
        last_used: Some(ago(60)),
        expires: users.is_empty().then(|| ago(-60 * 24 * 21)),
        size_bytes: mebibytes << 20,
        missing_bytes: missing << 20,
        whole: missing == 0,
        last_seen_upstream: Some(seen),
        upstreams: vec![check],
    }
}

/// A node as there may be: most is well, some isn't.
fn sight() -> Sight {
    let safe = |copies| Verdict { protected: true, copies, ..Verdict::default() };
    let images = vec![
        row("docker.io/library/nginx:1.29", Status::Available, safe(3), &["web/front-7d9f4b5c66-x2xkq/nginx"], 72),
        row(
            "docker.io/library/redis:8.2",
            Status::Available,
            safe(2),
            &["web/sessions-0/redis", "shop/queue-0/redis"],
            51,
        ),
        row(
            "registry.k8s.io/coredns/coredns:v1.12.3",
            Status::Available,
            safe(3),
            &["kube-system/coredns-668d6bf9bc-7lkzt/coredns"],
            19,
        ),
        row("registry.k8s.io/pause:3.10", Status::Available, safe(5), &["kube-system/coredns-668d6bf9bc-7lkzt"], 1),
        row(
            "ghcr.io/acme/storefront:2026.11",
            Status::Available,
            Verdict { drifted: true, ..safe(2) },
            &["shop/storefront-6b8d9c77f4-pqrst/app"],
            214,
        ),
        row(
            "reg.corp:5000/billing/ledger:v41",
            Status::Unreachable,
            Verdict::default(),
            &["billing/ledger-0/ledger"],
            318,
        ),
        row(
            "quay.io/legacy/report-generator:3.1",
            Status::NotFound,
            Verdict { lost: true, ..Verdict::default() },
            &["reports/nightly-29384756-abcde/report"],
            890,
        ),
        row("ghcr.io/acme/migrate:2026.10", Status::Available, safe(1), &[], 88),
    ];
    let upstream = |registry: &str, url: &str| Upstream {
        registry: registry.parse().unwrap(),
        url: url.to_owned(),
        last_success: Some(ago(1)),
        last_error: None,
        down: None,
        rests_until: None,
        quota: None,
    };
    let down = Down { since: ago(43), reason: "reg.corp:5000: connect timed out after 3s".to_owned() };
    let status = Doing {
        version: "0.1.0".to_owned(),
        pid: 1,
        uptime_seconds: 12 * 86_400 + 3 * 3_600,
        resident_bytes: 48 << 20,
        mirror: Mirror { listen: "127.0.0.1:7439".parse().unwrap(), tls: true, requests: 18_422 },
        containerd: "/run/containerd/containerd.sock".into(),
        canary: Some(Report {
            verdict: Canary::Used,
            at: ago(17).as_second().unsigned_abs(),
            took: Duration::from_secs(1),
        }),
        hosts: None,
        adopted: Vec::new(),
        cache: Cache {
            dir: "/var/lib/larder".into(),
            writable: true,
            blobs: 214,
            bytes: 9 << 30,
            arriving_bytes: 0,
            max_bytes: None,
            max_disk_percent: 75,
            disk_size_bytes: Some(100 << 30),
            disk_used_bytes: Some(58 << 30),
        },
        transfers: Vec::new(),
        upstreams: vec![
            Upstream {
                quota: Some(Quota { limit: 100, remaining: 71 }),
                ..upstream("docker.io", "https://registry-1.docker.io")
            },
            upstream("ghcr.io", "https://ghcr.io"),
            Upstream {
                last_success: Some(ago(43)),
                last_error: Some(LastError { at: ago(1), text: down.reason.clone() }),
                down: Some(down),
                ..upstream("reg.corp:5000", "https://reg.corp:5000")
            },
        ],
    };
    let member = |n: u8| ShownMember {
        node: format!("{:032x}", 0x9e37_79b9_7f4a_7c15_u128 * u128::from(n)),
        addr: format!("10.0.0.{n}:7441").parse().unwrap(),
        zone: if n < 4 { "eu-1a" } else { "eu-1b" }.to_owned(),
        settled: true,
        owns: 42,
    };
    let members: Vec<_> = (1..7).map(member).collect();
    let peers = Shown {
        node: members[0].node.clone(),
        addr: Some(members[0].addr),
        zone: "eu-1a".to_owned(),
        announced: 214,
        known: 812,
        members,
        reading: Vec::new(),
        uploads: Vec::new(),
    };
    // Pulls come in waves.
    let flows = (0..61_u64).map(|minute| {
        let wave = (minute * 37 % 23).pow(2) * u64::from(minute % 9 < 4);
        let bytes = Origin::ALL.map(|origin| match origin {
            Origin::Cache => wave << 17,
            Origin::Containerd => wave << 15,
            Origin::SameZone => wave << 16,
            Origin::OtherZone => wave << 13,
            Origin::Upstream => {
                if minute % 27 < 3 {
                    wave << 17
                } else {
                    wave << 12
                }
            }
        });
        Minute { end: ago(60 - i64::try_from(minute).unwrap()), bytes }
    });
    Sight {
        host: Some("node-3".to_owned()),
        now: Timestamp::now(),
        status,
        images: Images { complete: true, cluster: None, images },
        peers: ShownPart::Joined(peers),
        flows: flows.collect(),
    }
}

/// The same with what is hardest to fit in.
fn crowded() -> Sight {
    let mut sight = sight();
    let long =
        "registry.with-a-very-long-name.internal.example.com:5000/a-team-with-a-name/an-even-longer-path/component";
    for n in 0..400 {
        let name = format!("{long}:v{n}-{}", "0123456789abcdef".repeat(4));
        let user = format!("{0}/{0}-{0}/{0}", "namespace-with-no-end".repeat(3));
        sight.images.images.push(row(&name, Status::InvalidAuth, Verdict::default(), &[&user, "b", "c"], 1));
    }
    for upstream in &mut sight.status.upstreams {
        upstream.last_error = Some(LastError { at: ago(1), text: "x".repeat(700) });
    }
    sight.status.canary = Some(Report {
        verdict: Canary::Unused { pull_error: "<script>document.title='taken'</script>".repeat(20) },
        at: 1,
        took: Duration::ZERO,
    });
    sight
}

/// A node on which nothing is well, and nothing known.
fn bleak() -> Sight {
    let mut sight = sight();
    sight.images = Images::default();
    sight.flows.clear();
    let reason = "there is no socket /run/containerd/containerd.sock; containerd isn't running".to_owned();
    sight.status.canary = Some(Report { verdict: Canary::Unknown { reason }, at: 1, took: Duration::ZERO });
    sight.status.cache.writable = false;
    sight.status.upstreams.clear();
    if let ShownPart::Joined(peers) = &mut sight.peers {
        peers.members.truncate(1);
    }
    sight
}

/// What is wrong with the page that is open, to the eye.
async fn ensure_readable(browser: &mut Browser, width: u32) -> Result<()> {
    // Wider than the window: only what scrolls in a box of its own may be.
    let wide = browser
        .evaluate(
            "[document.documentElement, ...document.querySelectorAll('body *')]
               .filter(e => e.getBoundingClientRect().right > innerWidth + 1 || e === document.documentElement && e.scrollWidth > innerWidth)
               .filter(e => !e.closest('thead'))
               .slice(0, 5).map(e => e.outerHTML.slice(0, 200))",
        )
        .await?;
    ensure!(wide == Value::Array(Vec::new()), "too wide at {width} px: {wide}");
    ensure!(browser.evaluate("innerWidth").await? == width, "the window isn't {width} px wide");
    // By WCAG: text against what is behind it.
    let faint = browser
        .evaluate(
            "(() => {
               const parse = c => c.match(/[\\d.]+/g).map(Number);
               const light = c => { const [r, g, b] = parse(c).map(v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 }); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
               const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (parse(c)[3] !== 0) return c } return 'rgb(255, 255, 255)' };
               const ratio = e => { const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x); return (a + 0.05) / (b + 0.05) };
               return [...document.querySelectorAll('body *:not(svg *)')].filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
                 .map(e => [ratio(e), e]).filter(([r]) => !(r >= 4.5)).slice(0, 3).map(([r, e]) => r.toFixed(2) + ' ' + e.outerHTML.slice(0, 120))
             })()",
        )
        .await?;
    ensure!(faint == Value::Array(Vec::new()), "hard to read: {faint}");
    Ok(())
}

async fn serve(take: fn() -> Sight) -> Result<(String, CancellationToken)> {
    let page = Page::bind("127.0.0.1:0".parse()?)?;
    let url = format!("http://127.0.0.1:{}/", page.local_addr()?.port());
    let stop = CancellationToken::new();
    let look: Look = Arc::new(move || async move { take() }.boxed());
    tokio::spawn(page.serve(look, stop.clone()));
    Ok((url, stop))
}

#[test]
fn it_can_be_read_on_every_screen_and_asks_for_nothing_else() {
    run(async {
        let mut browser = Browser::start().await?;
        for take in [sight as fn() -> Sight, crowded, bleak] {
            let (url, stop) = serve(take).await?;
            let mut backgrounds = Vec::new();
            for scheme in [Scheme::Light, Scheme::Dark] {
                for width in [PHONE, 768, 1025, 1280, 1920] {
                    browser.look(width, 900, scheme).await?;
                    browser.open(&url).await?;
                    ensure_readable(&mut browser, width).await.with_context(|| format!("{scheme:?}"))?;
                    ensure!(browser.requests() == [url.clone()], "it asks for {:?}", browser.requests());
                    ensure!(browser.complaints().is_empty(), "{:?}", browser.complaints());
                    ensure!(browser.evaluate("document.title").await? == "Larder on node-3");
                }
                backgrounds.push(browser.evaluate("getComputedStyle(document.body).backgroundColor").await?);
            }
            ensure!(backgrounds[0] != backgrounds[1], "dark is as light: {backgrounds:?}");
            // A phone shows cards, in which each figure says what it is.
            browser.look(PHONE, 900, Scheme::Light).await?;
            browser.open(&url).await?;
            let said = "[...document.querySelectorAll('td[data-is]')].every(e => getComputedStyle(e, '::before').content.length > 2)";
            ensure!(browser.evaluate(said).await? == true, "a cell doesn't say what it is");
            // With all of it unfolded too.
            browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)").await?;
            ensure_readable(&mut browser, PHONE).await.context("unfolded")?;
            stop.cancel();
        }
        Ok(())
    });
}

/// The picture in the README is one of these: `LARDER_SCREENSHOT=page.png` takes it anew, to be made smaller by
/// `convert page.png -dither None -colors 96 PNG8:docs/page.png`.
#[test]
fn a_picture_can_be_taken() {
    run(async {
        let mut browser = Browser::start().await?;
        let (url, stop) = serve(sight).await?;
        browser.look(1100, 1690, Scheme::Light).await?;
        browser.open(&url).await?;
        let picture = browser.picture().await?;
        ensure!(picture.starts_with(b"\x89PNG"));
        let shown = std::fs::metadata(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/page.png"))?.len();
        ensure!(shown < 150_000, "{shown} bytes are too many for a README");
        if let Some(path) = std::env::var_os("LARDER_SCREENSHOT") {
            std::fs::write(path, picture)?;
        }
        stop.cancel();
        Ok(())
    });
}

#[test]
fn a_running_agent_shows_itself_and_its_figures() {
    run(async {
        let registry = FaultRegistry::start().await?;
        let image = Image::one_layer(3, 5);
        registry.add(&image, "acme/app", "v1");
        let folder = Folder::new()?;
        let port = free_port()?;
        let textfile = folder.path().join("larder.prom");
        let mut config = AgentConfig::without_containerd(folder.path());
        config.registry("reg.test", &[&registry.url()]);
        config.set_text("admin", "page", &format!("127.0.0.1:{port}"));
        config.set_path("admin", "textfile", &textfile);
        let mut agent = Agent::start(&folder.path().join("larder"), &config).await?;
        Puller::new(&agent, "reg.test", None).fetch("acme/app", "v1").await?;

        let url = format!("http://localhost:{port}/");
        let mut browser = Browser::start().await?;
        browser.look(PHONE, 800, Scheme::Dark).await?;
        browser.open(&url).await?;
        ensure_readable(&mut browser, PHONE).await?;
        let text = browser.evaluate("document.body.innerText").await?;
        let text = text.as_str().unwrap_or_default();
        for part in
            ["Upstreams", "reg.test", "Where bytes came from", "No cluster is configured", "containerd hasn't said"]
        {
            ensure!(text.contains(part), "{part} is not in {text}");
        }
        ensure!(browser.complaints().is_empty(), "{:?}", browser.complaints());
        ensure!(
            browser.evaluate("document.querySelectorAll('.hour rect.upstream').length > 0").await? == true,
            "no bytes"
        );
        let foreign = agent.http().send(http::Method::GET, &url, &[("host", "evil.test")], bytes::Bytes::new()).await?;
        ensure!(foreign.status == StatusCode::MISDIRECTED_REQUEST, "{}", foreign.status);

        let images = agent.command(&["images"]).await?;
        let said = String::from_utf8_lossy(&images.stderr).into_owned();
        ensure!(images.status.success() && said.contains("containerd hasn't said yet what it holds"), "{said}");
        let json: Value = serde_json::from_str(&agent.say(&["images", "-o", "json"]).await?)?;
        ensure!(json["complete"] == false && json["images"].is_array(), "{json}");

        let written = async || std::fs::read_to_string(&textfile).ok().filter(|text| !text.is_empty());
        let figures = until("the textfile is written", Duration::from_secs(10), written).await?;
        ensure!(figures.contains("\n# TYPE larder_served_bytes_total counter\n"), "{figures}");
        let output = promtool_check_metrics(&figures)?;
        ensure!(output.is_empty(), "{output}");
        agent.stop()?;
        ensure!(!textfile.exists(), "the textfile is left behind");
        Ok(())
    });
}

/// What `promtool check metrics` finds: it reads the format as node-exporter does, and knows what good names are.
fn promtool_check_metrics(text: &str) -> Result<String> {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let mut command = Command::new(larder_integration::tool("prometheus/usr/bin/promtool")?);
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    child.stdin.take().context("no pipe")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned())
}
