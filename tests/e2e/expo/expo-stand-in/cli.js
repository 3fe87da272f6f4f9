#!/usr/bin/env node
// Stands in for Expo's own command line: `expo prebuild` makes the native project.
const fs = require('node:fs');

const [verb, ...rest] = process.argv.slice(2);
if (verb !== 'prebuild' || !rest.includes('--no-install')) {
  console.error(`expo: unknown command ${verb}`);
  process.exit(64);
}
fs.mkdirSync('ios/App.xcodeproj', { recursive: true });
fs.writeFileSync('ios/App.xcodeproj/project.pbxproj', '// made by prebuild\n');
fs.writeFileSync('ios/Podfile', "target 'App' do\nend\n");
console.log('✔ Created native directory\n✔ Finished prebuild');
