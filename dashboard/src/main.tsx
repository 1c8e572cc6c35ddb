import { render } from "preact";
import { App } from "./app.tsx";
import { watchHealth } from "./connection.ts";
import "./style.css";
import { applyTheme, chosenTheme, watchSystemTheme } from "./theme.ts";

applyTheme(chosenTheme());
watchSystemTheme();
watchHealth();
const place = document.getElementById("app");
if (place) render(<App />, place);
