/** What is shown, as the address has it: `#/jobs?state=failed&sort=-age`. */

export interface Route {
  /** "", "jobs", "job" or "nodes". */
  page: string;
  /** The job's id on page "job". */
  id: string;
  params: Record<string, string>;
}

/** Read the part of an address behind "#"; what is no page of ours is the overview. */
export function parseRoute(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#/, "").split("?", 2);
  const params = Object.fromEntries(new URLSearchParams(query));
  const [first = "", second = ""] = path.split("/").filter((part) => part !== "");
  if (first === "jobs" && second) return { page: "job", id: decoded(second), params };
  if (first === "jobs" || first === "nodes") return { page: first, id: "", params };
  return { page: "", id: "", params: first === "" ? params : {} };
}

function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** Write it again; empty parameters are left out, and the rest is in order, so that one state has one address. */
export function formatRoute(route: Route): string {
  const path = route.page === "job" ? `/jobs/${encodeURIComponent(route.id)}` : `/${route.page}`;
  const wanted = Object.entries(route.params).filter(([, value]) => value !== "");
  const query = new URLSearchParams(wanted.sort(([a], [b]) => (a < b ? -1 : 1))).toString().replaceAll("%2C", ",");
  return `#${path}${query ? `?${query}` : ""}`;
}
