import { gzipSync } from "node:zlib";
import { defineConfig, type Plugin } from "vite";

const MOST_GZIPPED = 150 * 1024;

/** Everything that a browser loads, gzipped, has a bound: the build fails beyond it. */
function bounded(): Plugin {
  return {
    name: "bounded",
    generateBundle(_options, bundle) {
      const parts = Object.values(bundle).map((part) => (part.type === "chunk" ? part.code : part.source));
      const size = parts.reduce((sum, part) => sum + gzipSync(part).length, 0);
      if (size > MOST_GZIPPED) this.error(`${size} bytes gzipped are more than ${MOST_GZIPPED}`);
      this.info(`${size} bytes gzipped in all, of at most ${MOST_GZIPPED}`);
    },
  };
}

export default defineConfig({
  plugins: [bounded()],
  build: {
    outDir: "../gateway/holdfast_gateway/static",
    emptyOutDir: true,
    target: "es2022",
    modulePreload: { polyfill: false },
    // Nothing is inlined: the gateway's content security policy allows no inline script.
    assetsInlineLimit: 0,
  },
});
