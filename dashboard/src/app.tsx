/** The frame around the pages: where one is, whether what is shown is true now, and the theme. */

import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { useConnection, useRoute } from "./hooks.ts";
import { JobPage } from "./pages/job.tsx";
import { Jobs } from "./pages/jobs.tsx";
import { Nodes } from "./pages/nodes.tsx";
import { Overview } from "./pages/overview.tsx";
import { formatRoute, type Route } from "./route.ts";
import { clock } from "./text.ts";
import { applyTheme, chosenTheme, THEMES, type Theme } from "./theme.ts";

const PAGES = [
  ["", "Overview"],
  ["jobs", "Jobs"],
  ["nodes", "Nodes"],
] as const;

function title(route: Route): string {
  if (route.page === "job") return `Job ${route.id}`;
  return PAGES.find(([page]) => page === route.page)?.[1] ?? "Overview";
}

export function App(): JSX.Element {
  const route = useRoute();
  const { state, since, why } = useConnection();
  const main = useRef<HTMLElement>(null);
  const begun = useRef(false);
  useEffect(() => {
    document.title = `${title(route)} · holdfast`;
    // A reader that follows a link is to hear the new page, not to stay on a link that is gone.
    if (begun.current) main.current?.focus({ preventScroll: true });
    begun.current = true;
    scrollTo(0, 0);
  }, [route.page, route.id]);
  return (
    <>
      <a class="skip" href="#main" onClick={(event) => (event.preventDefault(), main.current?.focus())}>
        Skip to the page
      </a>
      <header class="top">
        <a class="brand" href="#/" aria-label="holdfast, overview">
          holdfast
        </a>
        <nav aria-label="Pages of the dashboard">
          {PAGES.map(([page, name]) => (
            <a
              key={page}
              href={formatRoute({ page, id: "", params: {} })}
              aria-current={route.page === page ? "page" : route.page === "job" && page === "jobs" ? "true" : undefined}
            >
              {name}
            </a>
          ))}
        </nav>
        <span class={`connection ${state}`} data-connection={state}>
          <svg viewBox="0 0 16 16" aria-hidden="true">
            <path d={state === "lost" ? "M8 2.8L14 13H2z" : "M8 4a4 4 0 1 0 0 8a4 4 0 1 0 0-8z"} />
          </svg>
          {state === "connecting" ? "connecting" : state}
        </span>
        <ThemeChoice />
      </header>
      <div role="status" class="banners">
        {state === "lost" ? (
          <p class="banner">
            <b>Connection lost.</b> {why} {since ? `What is shown is old: it is as of ${clock(since)}.` : "Nothing was shown yet."} Trying
            again.
          </p>
        ) : null}
      </div>
      <main id="main" ref={main} tabIndex={-1} class={state === "lost" ? "old" : ""}>
        <Page route={route} />
      </main>
    </>
  );
}

function Page({ route }: { route: Route }): JSX.Element {
  if (route.page === "jobs") return <Jobs route={route} />;
  if (route.page === "job") return <JobPage key={route.id} route={route} />;
  if (route.page === "nodes") return <Nodes route={route} />;
  return <Overview route={route} />;
}

function ThemeChoice(): JSX.Element {
  const [theme, setTheme] = useState<Theme>(chosenTheme);
  const choose = (next: Theme): void => {
    setTheme(next);
    applyTheme(next);
  };
  return (
    <label class="theme">
      <span class="hidden">Theme</span>
      <select value={theme} onChange={(event) => choose(event.currentTarget.value as Theme)}>
        {THEMES.map((name) => (
          <option key={name} value={name}>
            {name}
          </option>
        ))}
      </select>
    </label>
  );
}
