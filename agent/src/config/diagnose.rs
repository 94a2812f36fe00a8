//! What settings must be to make sense together, and help for those that do not.

use std::ops::Range;

use super::Settings;

/// The first setting that cannot work, as its dotted key and why.
pub(super) fn check(settings: &Settings) -> Result<(), (&'static str, String)> {
    let absolute = [
        ("policy_dir", Some(&settings.policy_dir)),
        ("state_dir", Some(&settings.state_dir)),
        ("runtime_dir", Some(&settings.runtime_dir)),
        ("kernel.cgroup_root", settings.kernel.cgroup_root.as_ref()),
        ("kernel.pin_dir", settings.kernel.pin_dir.as_ref()),
        ("record.dir", settings.record.dir.as_ref()),
    ];
    for (key, path) in absolute {
        if path.is_some_and(|path| !path.is_absolute()) {
            return Err((key, format!("`{key}` must be an absolute path")));
        }
    }
    let daemon = &settings.kernel.daemon_cgroup;
    if daemon.as_os_str().is_empty() || !daemon.components().all(|c| matches!(c, std::path::Component::Normal(_))) {
        return Err((
            "kernel.daemon_cgroup",
            "`kernel.daemon_cgroup` must be a path below the cgroup root, without `..`".into(),
        ));
    }
    if settings.state_dir == settings.runtime_dir {
        return Err(("runtime_dir", "`runtime_dir` is readable for all and must not be `state_dir`".into()));
    }
    if settings.kernel.heartbeat > std::time::Duration::from_secs(1) {
        return Err(("kernel.heartbeat", "`kernel.heartbeat` must be at most 1s: the kernel gives up after 2s".into()));
    }
    let lifetime = settings.ca.lifetime.as_secs();
    if !(3600..=10 * 366 * 24 * 3600).contains(&lifetime) {
        return Err(("ca.lifetime", "`ca.lifetime` must be at least 1h, and at most ten years".into()));
    }
    for (key, value, least) in [
        ("limits.connections", settings.limits.connections, 1),
        ("limits.sessions", settings.limits.sessions, 1),
        ("limits.memory", settings.limits.memory, 64 << 20),
        // A launcher sends its environment along, up to 64 KiB of it.
        ("control.max_request", settings.control.max_request, 128 << 10),
    ] {
        if value < least {
            return Err((key, format!("`{key}` must be at least {least}")));
        }
    }
    Ok(())
}

/// Where a dotted key stands in the text; `None` if it was not written there.
pub(super) fn locate(text: &str, key: &str) -> Option<Range<usize>> {
    let root: std::collections::BTreeMap<String, toml::Spanned<toml::Value>> = toml::from_str(text).ok()?;
    let (head, rest) = key.split_once('.').map_or((key, None), |(head, rest)| (head, Some(rest)));
    let spanned = root.get(head)?;
    let Some(leaf) = rest else { return Some(spanned.span()) };
    // The line in that table's own text that assigns the key.
    let start = spanned.span().start;
    let mut offset = start;
    for line in text[start..].split_inclusive('\n') {
        if line.trim_start().strip_prefix(leaf).is_some_and(|after| after.trim_start().starts_with('=')) {
            return Some(offset..offset + line.trim_end().len());
        }
        offset += line.len();
    }
    Some(spanned.span())
}

/// For "unknown field `x`, expected one of `a`, `b`": the name that was probably meant.
pub(super) fn suggestion(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown field `")?;
    let (unknown, rest) = rest.split_once('`')?;
    let best = rest
        .split('`')
        .skip(1)
        .step_by(2)
        .map(|known| (strsim::damerau_levenshtein(unknown, known), known))
        .min()
        .filter(|(distance, known)| *distance <= 1 + known.len() / 4)?;
    Some(format!("did you mean `{}`?", best.1))
}
