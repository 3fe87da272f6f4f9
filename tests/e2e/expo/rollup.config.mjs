// Makes one bundle of the app, as the phase of an Xcode project does it.
import commonjs from '@rollup/plugin-commonjs';
import resolve from '@rollup/plugin-node-resolve';

export default { input: 'src/index.js', output: { format: 'iife', name: 'app' }, plugins: [resolve(), commonjs()] };
