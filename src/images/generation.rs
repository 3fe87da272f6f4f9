//! The names of an image's generations: generation 3 of the image `macos` is the local VM `macos-g3`.

use std::collections::BTreeSet;

/// Which VM an image's name means: a generation of it, or the VM of just that name.
pub type Which = Option<u32>;

/// Nobody makes more, and a number that is longer is no generation but somebody's name.
pub const GENERATION_MAX: u32 = 99_999;

/// The VM that is `which` of the image `name`.
pub fn vm(name: &str, which: Which) -> String {
    match which {
        Some(generation) => format!("{name}-g{generation}"),
        None => name.to_owned(),
    }
}

/// The image and the generation that a VM's name says it is.
pub fn parse(vm: &str) -> Option<(&str, u32)> {
    let (name, digits) = vm.rsplit_once("-g")?;
    let plain = !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
    let generation = digits.parse().ok().filter(|n| plain && *n <= GENERATION_MAX)?;
    (!name.is_empty()).then_some((name, generation))
}

/// What there is of the image among local VMs.
pub fn there<'a>(name: &str, vms: impl IntoIterator<Item = &'a str>) -> BTreeSet<Which> {
    let which = |vm: &str| {
        if vm == name {
            return Some(None);
        }
        parse(vm).filter(|(image, _)| *image == name).map(|(_, generation)| Some(generation))
    };
    vms.into_iter().filter_map(which).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_generation_or_it_is_somebodys() {
        assert_eq!(parse("macos-g3"), Some(("macos", 3)));
        assert_eq!(parse("a-g1-g12"), Some(("a-g1", 12)));
        for other in
            ["macos", "macos-g", "macos-g0", "macos-g03", "macos-g+3", "-g3", "macos-g3-making", "x-g100000"]
        {
            assert_eq!(parse(other), None, "{other}");
        }
        assert_eq!((vm("macos", Some(3)), vm("macos", None)), ("macos-g3".into(), "macos".into()));
        let vms = ["macos", "macos-g2", "macos-g10", "macos-14-g3", "preheat-mac-0-1"];
        assert_eq!(there("macos", vms), BTreeSet::from([None, Some(2), Some(10)]));
        assert_eq!(there("macos-14", vms), BTreeSet::from([Some(3)]));
    }
}
