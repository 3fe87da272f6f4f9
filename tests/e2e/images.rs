//! Two generations of an image, and one that does not come up: the pool rolls over and back with real guests, and no build waits
//! for it.

use nix::sys::signal::Signal;
use preheat::api::wire::{BuildView, Claim, GenerationState, ImageList, ImageView};
use preheat::build::spec::BuildResult;

use crate::house::{House, Plan, err, out, until};
use crate::projects::tiny;

/// Makes a generation of `linux`: a clone in which a command has run.
fn generation(house: &House, vm: &str, command: &str) {
    let mut child = house.strangers_guest("linux", vm, &[]);
    let ran = house.tart(&["exec", vm, "sh", "-c", &format!("{command} && sync")]);
    assert!(ran.status.success(), "{}", err(&ran));
    let stopped = house.tart(&["stop", vm]);
    assert!(stopped.status.success(), "{}", err(&stopped));
    child.wait().expect("it ended");
}

fn image(house: &House) -> ImageView {
    let mut images = house.get::<ImageList>("images").images;
    images.retain(|image| image.name == "linux");
    images.remove(0)
}

fn state(image: &ImageView, generation: u32) -> GenerationState {
    image.generations.iter().find(|g| g.generation == Some(generation)).expect("it is there").state
}

/// Waits until a generation is in use and a VM of it has been warm.
fn good(house: &House, generation: u32) {
    until(&format!("generation {generation} to be good"), || {
        (state(&image(house), generation) == GenerationState::Current).then_some(())
    });
}

/// Waits for a warm VM, and for nothing else to be under way. What is cloned ahead may lie there.
fn ready(house: &House) {
    until("a warm VM, and nothing under way", || {
        let vms = house.vms();
        let rests = |state: &str| state == "warm" || state == "configured";
        (vms.iter().any(|vm| vm.state == "warm") && vms.iter().all(|vm| rests(&vm.state))).then_some(())
    });
}

/// A build in the pool: what it says of its generation.
fn built(house: &House) -> (BuildView, String) {
    let (build, _) = house.run(&[&tiny(house.dir()), "--pool", "linux", "--step", "cat /generation"]);
    let lines = house.log(build.id.0);
    let said = lines.iter().find(|line| line.text.starts_with("generation ")).expect("it says");
    (build, said.text.clone())
}

#[test]
fn a_pool_rolls_over_to_another_generation_and_back_and_no_build_waits_for_it() {
    let house = Plan::pool(1, 2).build();
    generation(&house, "linux-g1", "echo generation 1 | sudo tee /generation");
    generation(&house, "linux-g2", "echo generation 2 | sudo tee /generation");
    // Its sshd knows nobody.
    generation(
        &house,
        "linux-g3",
        "sudo sed -i 's/^AuthorizedKeysFile.*/AuthorizedKeysFile none/' /etc/ssh/sshd_config",
    );
    house.start();
    let chosen = house.preheat(&["image", "use", "linux@1"]);
    assert_eq!(chosen.status.code(), Some(0), "{}", err(&chosen));
    good(&house, 1);
    ready(&house);
    assert_eq!(built(&house).1, "generation 1");
    ready(&house);

    // Whoever comes while the pool rolls over is served at once, by the one generation or by the other.
    let chosen = house.preheat(&["image", "use", "linux@2"]);
    assert!(err(&chosen).contains("linux-g2 from now on; linux rolls over to it"), "{}", err(&chosen));
    let mut seen = Vec::new();
    until("builds in the new generation", || {
        let (build, said) = built(&house);
        assert_eq!(build.claim, Some(Claim::Hit), "{build:#?}");
        until("another warm one", || house.vms().iter().any(|vm| vm.state == "warm").then_some(()));
        seen.push(said);
        seen.last().is_some_and(|said| said == "generation 2").then_some(())
    });
    good(&house, 2);
    assert_eq!(state(&image(&house), 1), GenerationState::Before);
    assert_eq!(house.metric("preheat_image_generation", &[("pool", "linux")]), Some(2.0));

    // It holds over a restart, and a reload.
    assert_eq!(house.end(Signal::SIGTERM), Some(0), "{}", house.said());
    house.start();
    let reloaded = house.preheat(&["reload"]);
    assert_eq!(reloaded.status.code(), Some(0), "{}", err(&reloaded));
    ready(&house);
    assert_eq!(built(&house).1, "generation 2");
    ready(&house);

    // One that nobody can log in to is gone back from; the one before serves all the while.
    let chosen = house.preheat(&["image", "use", "linux@3"]);
    assert_eq!(chosen.status.code(), Some(0), "{}", err(&chosen));
    let failed = until("the third to be gone back from", || {
        let (build, said) = built(&house);
        assert_eq!((build.result, said.as_str()), (Some(BuildResult::Success), "generation 2"));
        Some(image(&house)).filter(|image| state(image, 3) == GenerationState::Failed)
    });
    assert_eq!(failed.base, "linux-g2");
    let listed = out(&house.preheat(&["image", "list"]));
    assert!(listed.lines().any(|line| line.contains("linux-g3") && line.contains("failed")), "{listed}");

    let back = house.preheat(&["image", "rollback", "linux"]);
    assert_eq!(back.status.code(), Some(0), "{}", err(&back));
    until("the pool to be of the first again", || (built(&house).1 == "generation 1").then_some(()));
    assert_eq!(image(&house).base, "linux-g1");
    assert_eq!(house.pools()[0].image, "linux-g1");
}
