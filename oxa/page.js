// The legend brings one arm out in every chart: the others' colors fade. Colors are CSS variables, so no chart is drawn
// again.
(() => {
  const root = document.documentElement;
  const buttons = [...document.querySelectorAll(".legend button")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const chosen = button.getAttribute("aria-pressed") !== "true";
      for (const other of buttons) {
        other.setAttribute("aria-pressed", String(chosen && other === button));
        const arm = other.dataset.arm;
        if (!arm) continue;
        if (chosen && other !== button) root.style.setProperty(`--arm-${arm}`, "var(--faint)");
        else root.style.removeProperty(`--arm-${arm}`);
      }
    });
  }
})();
