// The legend brings one arm out in every chart: the others' colors fade. Colors are CSS variables, so no chart is drawn
// again. What several arms share is drawn in the color of the first; [data-arms] names all of theirs, and it takes the
// color of whichever is brought out.
(() => {
  const root = document.documentElement;
  const buttons = [...document.querySelectorAll(".legend button")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const chosen = button.getAttribute("aria-pressed") !== "true";
      const { arm } = button.dataset;
      for (const other of buttons) {
        other.setAttribute("aria-pressed", String(chosen && other === button));
        const theirs = other.dataset.arm;
        if (!theirs) continue;
        if (chosen && theirs !== arm) root.style.setProperty(`--arm-${theirs}`, "var(--faint)");
        else root.style.removeProperty(`--arm-${theirs}`);
      }
      for (const part of document.querySelectorAll("[data-arms]")) {
        const [drawn, ...sharing] = part.dataset.arms.split(" ");
        if (chosen && arm !== drawn && sharing.includes(arm)) part.style.setProperty(`--arm-${drawn}`, `var(--arm-${arm})`);
        else part.style.removeProperty(`--arm-${drawn}`);
      }
    });
  }
})();
