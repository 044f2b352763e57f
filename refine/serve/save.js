// Let the browser save what the page was handed.
(file) => {
  const link = document.createElement("a");
  link.href = file.data;
  link.download = file.name;
  link.click();
}
