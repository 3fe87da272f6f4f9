// An app that needs two packages: a module, and one of the older kind.
import chunk from 'lodash-es/chunk.js';
import ms from 'ms';

console.log('bundled', JSON.stringify(chunk([1, 2, 3], 2)), ms(90000));
