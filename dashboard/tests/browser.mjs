// Drives a real Chromium for tests/dashboard: one command a line of JSON on stdin, one answer a line on stdout.
//
// Usage: node browser.mjs CHROMIUM PROFILE BASE

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const [executablePath, profile, base] = process.argv.slice(2);
const PATIENCE_MS = 60_000;
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

const context = await chromium.launchPersistentContext(profile, { executablePath, headless: true, args: FLAGS });
context.setDefaultTimeout(PATIENCE_MS);
const page = context.pages()[0] ?? (await context.newPage());

/** What a page should not say. */
let complaints = [];
page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
page.on("pageerror", (error) => complaints.push(String(error)));

// When each event came on screen, to tell how long that took.
await page.addInitScript(() => {
  window.appeared = {};
  window.violations = [];
  addEventListener("securitypolicyviolation", (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
  new MutationObserver(() => {
    for (const item of document.querySelectorAll("li[data-seq]")) window.appeared[item.dataset.seq] ??= Date.now();
  }).observe(document, { childList: true, subtree: true });
});

const commands = {
  /** Go to a page of the dashboard, as if it were opened for the first time. */
  async open({ hash, theme = "light", width = 1400, height = 900 }) {
    await page.setViewportSize({ width, height });
    await page.emulateMedia({ colorScheme: theme, reducedMotion: null });
    await page.goto("about:blank");
    await page.goto(`${base}/${hash}`);
    await page.waitForSelector('[data-connection="live"]');
  },
  reload: () => page.reload(),
  /** Wait until something is to be seen. */
  see: async ({ what, many }) => {
    const found = page.locator(what);
    await (many ? found.nth(many - 1) : found.first()).waitFor();
    return found.first().evaluate((node) => node.innerText ?? node.textContent);
  },
  gone: ({ what }) => page.locator(what).first().waitFor({ state: "detached" }),
  click: ({ what }) => page.locator(what).first().click(),
  fill: ({ what, text }) => page.locator(what).first().fill(text),
  choose: ({ what, value }) => page.locator(what).first().selectOption(value),
  focus: ({ what }) => page.locator(what).first().focus(),
  value: ({ what }) => page.locator(what).first().inputValue(),
  texts: ({ what }) => page.locator(what).allInnerTexts(),
  press: async ({ keys }) => {
    for (const key of keys) await page.keyboard.press(key);
  },
  /** What has the focus, as a screen reader would name it. */
  focused: () =>
    page.evaluate(() => {
      const found = document.activeElement;
      return found?.getAttribute("aria-label") ?? found?.innerText ?? "";
    }),
  /** Press Tab until something of this name has the focus. */
  async tab_to({ name }) {
    for (let turn = 0; turn < 200; turn++) {
      await page.keyboard.press("Tab");
      if ((await commands.focused()).startsWith(name)) return;
    }
    throw new Error(`Tab never came to ${name}`);
  },
  hash: () => page.evaluate(() => location.hash),
  /** Milliseconds from an event to the moment when it was on screen. */
  delay: ({ kind }) =>
    page.evaluate((kind) => {
      const item = document.querySelector(`li[data-kind="${kind}"]`);
      return window.appeared[item.dataset.seq] - Date.parse(item.querySelector("time").dateTime);
    }, kind),
  /** Seconds from the beginning of a page to its first paint, and until its ranks are drawn. */
  async paint() {
    await page.waitForFunction(() => document.querySelector(".grid canvas")?.style.height);
    return page.evaluate(() => {
      const [first] = performance.getEntriesByName("first-contentful-paint");
      return [first.startTime / 1000, performance.now() / 1000];
    });
  },
  /** What axe finds in a theme, by all of its rules or some. */
  async axe({ theme, rules }) {
    await page.emulateMedia({ colorScheme: theme, reducedMotion: "reduce" });
    await page.evaluate(AXE);
    const options = { resultTypes: ["violations"], ...(rules ? { runOnly: rules } : {}) };
    const { violations } = await page.evaluate((options) => window.axe.run(document, options), options);
    return violations.map((found) => `${found.id}: ${found.nodes.map((node) => node.html).join(" | ")}`);
  },
  /** What the page has complained about since it was asked last. */
  async complaints() {
    const found = [...complaints, ...(await page.evaluate(() => window.violations))];
    complaints = [];
    return found;
  },
  shot: async ({ path, full = false }) => {
    await page.screenshot({ path, fullPage: full });
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { do: name, ...rest } = JSON.parse(line);
  try {
    process.stdout.write(`${JSON.stringify({ answer: (await commands[name](rest)) ?? null })}\n`);
  } catch (error) {
    process.stdout.write(`${JSON.stringify({ error: String(error) })}\n`);
  }
}
await context.close();
