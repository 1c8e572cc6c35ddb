import { render } from "preact";
import { App } from "./app.tsx";
import { watchHealth } from "./connection.ts";
import "./style/theme.css";
import "./style/frame.css";
import "./style/parts.css";
import "./style/job.css";
import "./style/narrow.css";
import { applyTheme, chosenTheme, watchSystemTheme } from "./theme.ts";

applyTheme(chosenTheme());
watchSystemTheme();
watchHealth();
const place = document.getElementById("app");
if (place) render(<App />, place);
