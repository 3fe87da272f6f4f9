//! What the tools print when they fail, as it is printed, and what is made of it.

use super::*;

fn told(text: &str) -> Said {
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    read(&lines).expect("it says something")
}

fn is(text: &str, kind: FailureKind, message: &str) -> Vec<String> {
    let said = told(text);
    assert_eq!((said.kind, said.message.as_str()), (kind, message), "{:#?}", said.lines);
    said.lines
}

use FailureKind::{Signing, System, User};

#[test]
fn npm_without_a_network_is_told_as_that() {
    let lines = is(
        "npm ERR! code ENOTFOUND\nnpm ERR! syscall getaddrinfo\nnpm ERR! errno ENOTFOUND\n\
         npm ERR! network request to https://registry.example.org/left-pad failed, reason: getaddrinfo ENOTFOUND registry.example.org\n\
         npm ERR! network This is a problem related to network connectivity.\nnpm ERR! network \n\
         \nnpm ERR! A complete log of this run can be found in: /home/admin/.npm/_logs/2026-01-01-debug-0.log\n",
        System,
        "the npm registry at registry.example.org cannot be reached from the guest (ENOTFOUND)",
    );
    assert!(lines[0] == "code ENOTFOUND" && !lines.iter().any(|line| line.contains("_logs")), "{lines:?}");
    is(
        "npm error code EAI_AGAIN\nnpm error syscall getaddrinfo\nnpm error errno EAI_AGAIN\n\
         npm error request to https://registry.example.org/rollup failed, reason: getaddrinfo EAI_AGAIN registry.example.org\n",
        System,
        "the npm registry at registry.example.org cannot be reached from the guest (EAI_AGAIN)",
    );
    is(
        "npm error code ETIMEDOUT\nnpm error errno ETIMEDOUT\nnpm error network request to http://10.0.2.2:4873/a failed, reason: connect ETIMEDOUT 10.0.2.2:4873\n",
        System,
        "the npm registry at 10.0.2.2 cannot be reached from the guest (ETIMEDOUT)",
    );
}

#[test]
fn npm_that_ends_without_a_word_of_the_network_is_told_by_what_it_wrote_down() {
    is(
        "npm error Exit handler never called!\nnpm error This is an error with npm itself. Please report this error at:\n\
         npm error   <https://bugs.example.org/npm/cli/issues>\n\
         npm error A complete log of this run can be found in: /home/admin/.npm/_logs/2026-01-01T00_00_00_000Z-debug-0.log\n\
         npm error fetch GET https://registry.example.org/inherits attempt 1 failed with EAI_AGAIN\n",
        System,
        "the npm registry at registry.example.org cannot be reached from the guest (EAI_AGAIN)",
    );
}

#[test]
fn npm_says_what_a_developer_has_to_mend() {
    is(
        "npm error code EUSAGE\nnpm error\nnpm error `npm ci` can only install packages when your package.json and package-lock.json \
         or npm-shrinkwrap.json are in sync. Please update your lock file with `npm install` before continuing.\n\
         npm error\nnpm error Missing: left-pad@1.3.0 from lock file\n",
        User,
        "package.json and its lock file do not fit together: run `npm install` and commit the lock file",
    );
    is(
        "npm ERR! code ERESOLVE\nnpm ERR! ERESOLVE could not resolve\nnpm ERR! \nnpm ERR! While resolving: react-dom@18.2.0\n\
         npm ERR! Found: react@17.0.2\n",
        User,
        "npm finds no versions that suit all dependencies of package.json (ERESOLVE)",
    );
    let lines = is(
        "npm error code E404\nnpm error 404 Not Found - GET https://registry.example.org/@acme%2fui - Not found\nnpm error 404\n\
         npm error 404  '@acme/ui@^2.0.0' is not in this registry.\n",
        User,
        "a package is not in the npm registry: 404 Not Found - GET https://registry.example.org/@acme%2fui - Not found",
    );
    assert_eq!(lines.len(), 4);
    is(
        "npm error code E401\nnpm error Unable to authenticate, need: Bearer\n",
        User,
        "the npm registry does not let this build in (E401): is its token among the secrets?",
    );
    is("npm ERR! code ENOSPC\nnpm ERR! syscall write\n", System, "the guest's disk is full (ENOSPC)");
    is(
        "npm error code EACCES\nnpm error syscall mkdir\nnpm error path /usr/lib/node_modules\n",
        User,
        "npm failed with EACCES: syscall mkdir",
    );
}

#[test]
fn a_script_that_npm_ran_is_told_by_its_own_words() {
    is(
        "> app@1.0.0 build\n> tsc -p .\nsrc/app.ts(3,5): error TS2322: Type 'string' is not assignable to type 'number'.\n\
         src/app.ts(9,1): error TS2304: Cannot find name 'x'.\nnpm ERR! code ELIFECYCLE\nnpm ERR! errno 2\n",
        User,
        "src/app.ts(3,5): error TS2322: Type 'string' is not assignable to type 'number'. (and 1 more)",
    );
    is(
        "> app@1.0.0 bundle\nError: Cannot find module './missing'\n    at Module._resolveFilename (node:internal/modules/cjs/loader:1039:15)\n\
         npm error Lifecycle script `bundle` failed with error:\nnpm error code 1\nnpm error path /home/admin/work\n",
        User,
        "Error: Cannot find module './missing'",
    );
}

#[test]
fn the_other_installers_speak_too() {
    is(
        "Lockfile is up to date, resolution step is skipped\n ERR_PNPM_META_FETCH_FAIL  GET https://registry.example.org/left-pad: request to https://registry.example.org/left-pad failed, reason: getaddrinfo EAI_AGAIN registry.example.org\n",
        System,
        "the npm registry at registry.example.org cannot be reached from the guest (EAI_AGAIN)",
    );
    is(
        " ERR_PNPM_OUTDATED_LOCKFILE  Cannot install with \"frozen-lockfile\" because pnpm-lock.yaml is not up to date with package.json\n",
        User,
        "package.json and pnpm-lock.yaml do not fit together: run `pnpm install` and commit the lock file",
    );
    is(
        "yarn install v1.22.22\n[1/4] Resolving packages...\nerror Your lockfile needs to be updated, but yarn was run with `--frozen-lockfile`.\n\
         info Visit https://yarn.example.org/en/docs/cli/install for documentation about this command.\n",
        User,
        "package.json and yarn.lock do not fit together: run `yarn install` and commit the lock file",
    );
    is(
        "➤ YN0000: ┌ Fetch step\n➤ YN0001: │ RequestError: getaddrinfo ENOTFOUND registry.example.org\n➤ YN0000: Failed with errors in 3s\n",
        System,
        "the npm registry cannot be reached from the guest (ENOTFOUND)",
    );
}

#[test]
fn xcodebuild_is_told_by_its_errors_and_what_it_was_at() {
    let lines = is(
        "CompileSwift normal arm64 /Users/admin/work/ios/App/AppDelegate.swift\n\
         /Users/admin/work/ios/App/AppDelegate.swift:12:5: error: cannot find 'RCTBridge' in scope\n\
         \u{20}   RCTBridge()\n    ^~~~~~~~~\n\
         /Users/admin/work/ios/App/AppDelegate.swift:40:9: error: value of type 'App' has no member 'x'\n\
         /Users/admin/work/ios/App/AppDelegate.swift:12:5: error: cannot find 'RCTBridge' in scope\n\
         note: Using stub executor signature as Executor Signature\n** ARCHIVE FAILED **\n\n\n\
         The following build commands failed:\n\tSwiftCompile normal arm64 Compiling\\ AppDelegate.swift (in target 'App' from project 'App')\n\
         \tArchiving workspace App with scheme App\n(2 failures)\n",
        User,
        "AppDelegate.swift:12:5: cannot find 'RCTBridge' in scope (and 1 more)",
    );
    assert_eq!(lines.len(), 4, "{lines:#?}");
    assert!(lines[2].starts_with("SwiftCompile normal arm64"), "{lines:#?}");
    is(
        "xcodebuild: error: The workspace named \"App\" does not contain a scheme named \"Foo\". The \"-list\" option can be used to find the names of the schemes in the workspace.\n",
        User,
        "The workspace named \"App\" does not contain a scheme named \"Foo\". The \"-list\" option can be used to find the names of the schemes in the workspace.",
    );
    is(
        "Undefined symbols for architecture arm64:\n  \"_OBJC_CLASS_$_RNCamera\", referenced from:\nld: symbol(s) not found for architecture arm64\n\
         clang: error: linker command failed with exit code 1 (use -v to see invocation)\n** BUILD FAILED **\n",
        User,
        "Undefined symbols for architecture arm64: (and 2 more)",
    );
    is(
        "** ARCHIVE FAILED **\nThe following build commands failed:\n\tPhaseScriptExecution Bundle\\ React\\ Native\\ code /Users/x.sh (in target 'App' from project 'App')\n(1 failure)\n",
        User,
        "xcodebuild failed at PhaseScriptExecution Bundle\\ React\\ Native\\ code /Users/x.sh (in target 'App' from project 'App')",
    );
}

#[test]
fn what_is_wrong_with_signing_is_told_as_that() {
    is(
        "/Users/admin/work/ios/App.xcodeproj: error: Signing for \"App\" requires a development team. Select a development team in the Signing & Capabilities editor. (in target 'App' from project 'App')\n** ARCHIVE FAILED **\n",
        Signing,
        "App.xcodeproj: Signing for \"App\" requires a development team. Select a development team in the Signing & Capabilities editor. (in target 'App' from project 'App')",
    );
    is(
        "error: exportArchive: No signing certificate \"iOS Distribution\" found\n\n** EXPORT FAILED **\n",
        Signing,
        "exportArchive: No signing certificate \"iOS Distribution\" found",
    );
    is(
        "/Users/admin/work/build/App.app: replacing existing signature\n/Users/admin/work/build/App.app: errSecInternalComponent\n\
         Command CodeSign failed with a nonzero exit code\n** ARCHIVE FAILED **\n",
        Signing,
        "codesign may not use the key: its keychain is locked, or has no partition list (errSecInternalComponent)",
    );
}

#[test]
fn pods_gradle_and_others_are_told_by_what_they_say_at_the_end() {
    let lines = is(
        "Analyzing dependencies\n[!] CocoaPods could not find compatible versions for pod \"Firebase/CoreOnly\":\n  In Podfile:\n\
         \u{20}   RNFBApp was resolved to 18.6.1, which depends on\n      Firebase/CoreOnly (= 10.15.0)\n",
        User,
        "CocoaPods failed: CocoaPods could not find compatible versions for pod \"Firebase/CoreOnly\":",
    );
    assert_eq!(lines.len(), 4);
    is(
        "[!] CDN: trunk URL couldn't be downloaded: https://pods.example.org/deprecated_podspecs.txt Response: Couldn't resolve host name\n",
        System,
        "the server of CocoaPods at pods.example.org cannot be reached from the guest (no such host)",
    );
    is(
        "> Task :app:compileReleaseKotlin FAILED\ne: file:///home/admin/work/android/app/Main.kt:7:9 Unresolved reference: foo\n\n\
         FAILURE: Build failed with an exception.\n\n* What went wrong:\nExecution failed for task ':app:compileReleaseKotlin'.\n\
         > Compilation error. See log for more details\n\n* Try:\n> Run with --stacktrace option to get the stack trace.\n",
        User,
        "Gradle failed: e: file:///home/admin/work/android/app/Main.kt:7:9 Unresolved reference: foo",
    );
    is(
        "FAILURE: Build failed with an exception.\n\n* What went wrong:\nA problem occurred configuring root project 'android'.\n\
         > Could not resolve all files for configuration ':classpath'.\n* Try:\n",
        User,
        "Gradle failed: A problem occurred configuring root project 'android'. Could not resolve all files for configuration ':classpath'.",
    );
    is(
        "Cloning into 'lib'...\nfatal: unable to access 'https://git.example.org/lib.git/': Could not resolve host: git.example.org\n",
        System,
        "a server at git.example.org cannot be reached from the guest (no such host)",
    );
    is(
        "main.c:3:5: error: expected ';'\nmake: *** [Makefile:2: all] Error 1\n",
        User,
        "main.c:3:5: error: expected ';'",
    );
    is("doing this\nit is over\n\n", User, "it is over");
    assert_eq!(read(&[]), None);
}
