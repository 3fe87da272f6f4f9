//! Whether a package that came out of a guest is the app that its name says, and what it says of itself. The guest made it, so
//! it may be anything: a little of it is read, in bounds, and nothing is unpacked. Blocking code.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use plist::Value;
use zip::ZipArchive;

use crate::api::wire::{AppKind, AppView};

/// The most entries of a package. The largest apps have some ten thousand.
const ENTRIES_MAX: u64 = 200_000;

/// A zip's directory, whatever it says of the number of its entries: the library reads it whole.
const DIRECTORY_BYTES_MAX: u64 = 64 << 20;

/// The longest `Info.plist` and profile, unpacked.
const PART_BYTES_MAX: u64 = 4 << 20;

/// The longest text that is told of an app.
const TEXT_CHARS_MAX: usize = 200;

/// The end of a zip: its record, and the longest comment behind it.
const END_BYTES_MAX: u64 = 22 + 65_535;

/// Why a package is no app.
#[derive(Debug, thiserror::Error)]
pub enum NoApp {
    #[error("it is no zip archive: {0}")]
    NoZip(String),
    #[error("it has more than {max} entries", max = ENTRIES_MAX)]
    TooMany,
    #[error("its directory is longer than {max} bytes", max = DIRECTORY_BYTES_MAX)]
    TooLong,
    #[error("`{0}` in it leads out of it")]
    Hostile(String),
    #[error("it has no `{0}`")]
    Missing(&'static str),
    #[error("it has more than one app in `Payload`: `{0}` and `{1}`")]
    Several(String, String),
    #[error("its `{part}` cannot be read: {why}")]
    Unreadable { part: String, why: String },
    /// This host's.
    #[error("it cannot be read")]
    Host(#[from] std::io::Error),
}

/// The kind that a file's name promises.
pub fn kind(path: &str) -> Option<AppKind> {
    let (_, end) = path.rsplit_once('.')?;
    [AppKind::Ipa, AppKind::Apk, AppKind::Aab]
        .into_iter()
        .find(|kind| end.eq_ignore_ascii_case(kind.as_str()))
}

/// Reads a package.
///
/// # Errors
/// When it is not what its name promises, or is hostile.
pub fn inspect(path: &Path, kind: AppKind) -> Result<AppView, NoApp> {
    let mut file = File::open(path)?;
    check_directory(&mut file)?;
    let mut zip = ZipArchive::new(BufReader::new(file)).map_err(|e| NoApp::NoZip(e.to_string()))?;
    if zip.len() as u64 > ENTRIES_MAX {
        return Err(NoApp::TooMany);
    }
    let names = zip.file_names().map(|name| name.map(Cow::into_owned));
    let names: Vec<String> = names.collect::<Result<_, _>>().map_err(|e| NoApp::NoZip(e.to_string()))?;
    if let Some(name) = names.iter().find(|name| leads_out(name)) {
        return Err(NoApp::Hostile(name.escape_debug().to_string()));
    }
    let there = |part: &'static str| {
        if names.iter().any(|name| name == part) { Ok(nothing_more(kind)) } else { Err(NoApp::Missing(part)) }
    };
    match kind {
        AppKind::Ipa => ipa(&mut zip, &names),
        AppKind::Apk => there("AndroidManifest.xml"),
        AppKind::Aab => there("base/manifest/AndroidManifest.xml"),
    }
}

/// Before the library makes room for as many entries as the file says that it has.
fn check_directory(file: &mut File) -> Result<(), NoApp> {
    const SIGNATURE: [u8; 4] = [b'P', b'K', 5, 6];
    let bytes = file.seek(SeekFrom::End(0))?;
    let from = bytes.saturating_sub(END_BYTES_MAX);
    file.seek(SeekFrom::Start(from))?;
    let mut end = Vec::new();
    Read::by_ref(file).take(END_BYTES_MAX).read_to_end(&mut end)?;
    let at = end.windows(SIGNATURE.len()).rposition(|window| window == SIGNATURE);
    let record =
        at.and_then(|at| end.get(at..at + 22)).ok_or_else(|| NoApp::NoZip("it has no end".into()))?;
    let directory = u32::from_le_bytes([record[12], record[13], record[14], record[15]]);
    file.seek(SeekFrom::Start(0))?;
    // All ones stand for a number in another place, of a zip that is larger than any app.
    if directory != u32::MAX && u64::from(directory) <= DIRECTORY_BYTES_MAX {
        Ok(())
    } else {
        Err(NoApp::TooLong)
    }
}

fn leads_out(name: &str) -> bool {
    let strange = name.starts_with('/') || name.contains(['\\', '\0']);
    strange || name.split('/').any(|part| part == "..")
}

fn ipa(zip: &mut ZipArchive<BufReader<File>>, names: &[String]) -> Result<AppView, NoApp> {
    const INFO: &str = "Payload/*.app/Info.plist";
    let app = |name: &String| {
        let folder = name.strip_prefix("Payload/")?.strip_suffix("/Info.plist")?;
        (folder.ends_with(".app") && !folder.contains('/')).then(|| folder.to_owned())
    };
    let mut apps = names.iter().filter_map(app);
    let folder = apps.next().ok_or(NoApp::Missing(INFO))?;
    if let Some(other) = apps.next() {
        return Err(NoApp::Several(folder, other));
    }
    let part = format!("Payload/{folder}/Info.plist");
    let bytes = read(zip, &part)?;
    let info = Value::from_reader(std::io::Cursor::new(bytes));
    let info = info.map_err(|e| NoApp::Unreadable { part: part.clone(), why: e.to_string() })?;
    let info = info.as_dictionary().ok_or(NoApp::Unreadable { part, why: "it is no dictionary".into() })?;
    let text = |key: &str| info.get(key).and_then(Value::as_string).map(told);
    let mut view = AppView {
        name: text("CFBundleDisplayName").or_else(|| text("CFBundleName")),
        bundle_id: text("CFBundleIdentifier"),
        version: text("CFBundleShortVersionString"),
        build_number: text("CFBundleVersion"),
        minimum_os: text("MinimumOSVersion"),
        ..nothing_more(AppKind::Ipa)
    };
    let profile = format!("Payload/{folder}/embedded.mobileprovision");
    if names.contains(&profile) {
        sign(&mut view, &read(zip, &profile)?);
    }
    Ok(view)
}

/// Who signed it, from the profile in it: a plist inside a signature, which is found by its own beginning and end. One that
/// cannot be read says nothing; whether it is right, Apple says.
fn sign(view: &mut AppView, profile: &[u8]) {
    const BEGIN: &[u8] = b"<?xml";
    const END: &[u8] = b"</plist>";
    let find = |what: &[u8]| profile.windows(what.len()).position(|window| window == what);
    let Some((begin, end)) = find(BEGIN).zip(find(END)).filter(|(begin, end)| begin < end) else { return };
    let Ok(profile) = Value::from_reader_xml(&profile[begin..end + END.len()]) else { return };
    let Some(profile) = profile.as_dictionary() else { return };
    let text = |key: &str| profile.get(key).and_then(Value::as_string).map(told);
    let teams = profile.get("TeamIdentifier").and_then(Value::as_array);
    view.team_id = teams.and_then(|all| all.first()).and_then(Value::as_string).map(told);
    view.team_name = text("TeamName");
    view.profile = text("Name");
}

/// A part of the package, no longer than a bound whatever its head says.
fn read(zip: &mut ZipArchive<BufReader<File>>, name: &str) -> Result<Vec<u8>, NoApp> {
    let wrong = |why: String| NoApp::Unreadable { part: name.to_owned(), why };
    let mut part = zip.by_name(name).map_err(|e| wrong(e.to_string()))?;
    let mut bytes = Vec::new();
    Read::by_ref(&mut part)
        .take(PART_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| wrong(e.to_string()))?;
    if bytes.len() as u64 > PART_BYTES_MAX {
        return Err(wrong(format!("it is longer than {PART_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

fn nothing_more(kind: AppKind) -> AppView {
    AppView {
        kind,
        name: None,
        bundle_id: None,
        version: None,
        build_number: None,
        minimum_os: None,
        team_id: None,
        team_name: None,
        profile: None,
    }
}

/// A text of the app's, in one line and not too long.
fn told(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TEXT_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::write::SimpleFileOptions;

    use super::*;

    const INFO: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0"><dict>
<key>CFBundleIdentifier</key><string>org.example.app</string>
<key>CFBundleName</key><string>App</string>
<key>CFBundleShortVersionString</key><string>1.4.0</string>
<key>CFBundleVersion</key><string>214</string>
<key>MinimumOSVersion</key><string>15.1</string>
</dict></plist>"#;

    const PROFILE: &str = "0\u{82}<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<plist version=\"1.0\"><dict>\
        <key>Name</key><string>App Store</string><key>TeamName</key><string>Example Ltd</string>\
        <key>TeamIdentifier</key><array><string>ABCDE12345</string></array></dict></plist>\u{1}\u{2}signature";

    fn package(parts: &[(&str, &[u8])]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mut zip = zip::ZipWriter::new(file.as_file());
        for (name, bytes) in parts {
            zip.start_file(*name, SimpleFileOptions::default()).expect("begun");
            zip.write_all(bytes).expect("written");
        }
        zip.finish().expect("whole");
        file
    }

    fn ipa_of(parts: &[(&str, &[u8])]) -> Result<AppView, String> {
        inspect(package(parts).path(), AppKind::Ipa).map_err(|e| e.to_string())
    }

    #[test]
    fn an_app_says_what_it_is_and_who_signed_it() {
        let info = ("Payload/App.app/Info.plist", INFO.as_bytes());
        let other = ("Payload/App.app/Frameworks/X.framework/Info.plist", &b"no plist"[..]);
        let profile = ("Payload/App.app/embedded.mobileprovision", PROFILE.as_bytes());
        let app = ipa_of(&[other, info, profile]).expect("an app");
        assert_eq!(app.bundle_id.as_deref(), Some("org.example.app"));
        assert_eq!((app.version.as_deref(), app.build_number.as_deref()), (Some("1.4.0"), Some("214")));
        assert_eq!((app.name.as_deref(), app.minimum_os.as_deref()), (Some("App"), Some("15.1")));
        assert_eq!(
            (app.team_id.as_deref(), app.team_name.as_deref()),
            (Some("ABCDE12345"), Some("Example Ltd"))
        );
        let unsigned = ipa_of(&[info]).expect("an app");
        assert_eq!((unsigned.team_id, unsigned.profile), (None, None));
        let strange = ipa_of(&[info, ("Payload/App.app/embedded.mobileprovision", &b"</plist><?xml"[..])]);
        assert_eq!(strange.expect("an app").team_id, None, "a profile that cannot be read says nothing");
    }

    #[test]
    fn a_binary_property_list_is_read_too() {
        let value = Value::from_reader_xml(INFO.as_bytes()).expect("a plist");
        let mut bytes = Vec::new();
        value.to_writer_binary(&mut bytes).expect("written");
        let app = ipa_of(&[("Payload/App.app/Info.plist", bytes.as_slice())]).expect("an app");
        assert_eq!(app.bundle_id.as_deref(), Some("org.example.app"));
    }

    #[test]
    fn what_is_no_app_is_refused_with_the_reason() {
        let info = |folder: &str| format!("Payload/{folder}/Info.plist");
        let (a, b) = (info("A.app"), info("B.app"));
        for (parts, why) in [
            (vec![("README", &b"x"[..])], "it has no `Payload/*.app/Info.plist`"),
            (vec![("Payload/App.app/App", &b"x"[..])], "it has no `Payload/*.app/Info.plist`"),
            (vec![(a.as_str(), INFO.as_bytes()), (b.as_str(), INFO.as_bytes())], "it has more than one app"),
            (vec![(a.as_str(), &b"x"[..])], "its `Payload/A.app/Info.plist` cannot be read"),
            (vec![("../x", &b"x"[..]), (a.as_str(), INFO.as_bytes())], "`../x` in it leads out of it"),
            (vec![("/etc/x", &b"x"[..]), (a.as_str(), INFO.as_bytes())], "`/etc/x` in it leads out"),
        ] {
            let told = ipa_of(&parts).expect_err("no app");
            assert!(told.starts_with(why), "{why}: {told}");
        }
        let bomb = vec![b' '; usize::try_from(PART_BYTES_MAX).expect("it fits") + 1];
        assert!(ipa_of(&[(a.as_str(), bomb.as_slice())]).expect_err("a bomb").contains("longer than"));
        for bytes in [&b""[..], b"PK", b"not a zip", b"PK\x05\x06"] {
            let file = tempfile::NamedTempFile::new().expect("a file");
            std::fs::write(file.path(), bytes).expect("written");
            assert!(matches!(inspect(file.path(), AppKind::Ipa), Err(NoApp::NoZip(_))), "{bytes:?}");
        }
    }

    #[test]
    fn a_directory_without_bounds_is_refused_before_it_is_read() {
        let file = package(&[("a", &b"x"[..])]);
        let mut bytes = std::fs::read(file.path()).expect("there");
        let at = bytes.len() - 22;
        for size in [u32::MAX, 1 << 30] {
            bytes[at + 12..at + 16].copy_from_slice(&size.to_le_bytes());
            std::fs::write(file.path(), &bytes).expect("written");
            assert!(matches!(inspect(file.path(), AppKind::Ipa), Err(NoApp::TooLong)));
        }
    }

    #[test]
    fn packages_are_known_by_their_names_and_androids_by_their_manifest() {
        assert_eq!(kind("build/App.ipa"), Some(AppKind::Ipa));
        assert_eq!(kind("a.AAB"), Some(AppKind::Aab));
        assert_eq!((kind("ipa"), kind("a.zip")), (None, None));
        let apk = package(&[("AndroidManifest.xml", &b"x"[..])]);
        assert_eq!(inspect(apk.path(), AppKind::Apk).expect("an app").kind, AppKind::Apk);
        assert!(matches!(inspect(apk.path(), AppKind::Aab), Err(NoApp::Missing(_))));
    }
}
