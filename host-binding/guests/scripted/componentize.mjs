// Makes a component of a module: componentize.mjs SOURCE WIT-FOLDER COMPONENT

import { readFile, writeFile } from "node:fs/promises";
import { componentize } from "@bytecodealliance/componentize-js";

const [source, witPath, out] = process.argv.slice(2);
const { component } = await componentize(await readFile(source, "utf8"), {
    witPath,
    worldName: "visits",
    disableFeatures: ["http", "fetch-event"],
});
await writeFile(out, component);
