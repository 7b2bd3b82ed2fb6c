// Runs before the first paint, so that a chosen theme or language never flashes.
(() => {
  const stored = (name) => {
    try {
      return localStorage.getItem(`evergreen.${name}`);
    } catch {
      return null; // storage switched off
    }
  };
  const root = document.documentElement;
  const theme = stored("theme");
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  const wanted = [stored("language"), ...(navigator.languages ?? [])].find((name) => /^(zh|en)\b/i.test(name ?? ""));
  root.lang = /^zh/i.test(wanted ?? "") ? "zh-CN" : "en";
})();
